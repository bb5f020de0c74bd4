"""Results on disk: a JSON file that says what was measured with what, and the predictions it was computed from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpretrain.config.reader import to_dict
from avpretrain.core.errors import UserError
from avpretrain.core.files import read_json, write_json
from avpretrain.core.provenance import environment
from avpretrain.evaluation.predictions import Scored, difference, load_scored, matched
from avpretrain.measures.scores import require_score
from avpretrain.training.folders import STATE, WEIGHTS, find_weights

if TYPE_CHECKING:  # comparing saved results needs no torch
    from avpretrain.data.read.clips import ClipSet
    from avpretrain.methods.diffmavil.model import DiffMAViL

FORMAT = 1


def origin(checkpoint: Path, model: DiffMAViL, clips: ClipSet, shards: tuple[str, ...], seed: int) -> dict[str, Any]:
    """What a result was measured with: weights by hash, data by fingerprint, config, versions, seed."""
    from avpretrain.training.checkpoint import file_sha256

    folder = find_weights(checkpoint)
    weights: dict[str, Any] = {"path": str(folder), "sha256": file_sha256(folder / WEIGHTS)}
    if (folder / STATE).is_file():
        try:
            weights["seen"] = int(read_json(folder / STATE, "checkpoint state")["progress"]["seen"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"checkpoint state {folder / STATE} is damaged: it lacks progress.seen") from None
    return {
        "format": FORMAT,
        "checkpoint": weights,
        "data": {"shards": list(shards), "fingerprint": clips.fingerprint},
        "model": to_dict(model.cfg),
        "seed": seed,
        **environment(),
    }


def result_path(checkpoint: Path, out: Path | None, *name: str) -> Path | None:
    """Where a result goes: `out`, or `eval/NAME.json` of the run the checkpoint belongs to; none = nowhere.

    Results of a single checkpoint of a run end in its name, so that they do not replace those of the final weights.
    """
    if out is not None:
        return out
    folder = checkpoint.resolve()
    for run, which in ((folder, ""), (folder.parent, ""), (folder.parent.parent, folder.name)):
        if (run / "run.json").is_file():
            stem = re.sub(r"[^A-Za-z0-9_-]+", "-", "_".join(part for part in (*name, which) if part))
            return run / "eval" / f"{stem}.json"
    return None


def save_result(path: Path, result: dict[str, Any], predictions: Scored) -> None:
    """Writes `path`, and beside it the predictions as .npz, which `compare_results` reads."""
    predictions.save(predictions_path(path))
    write_json(path, result)


def predictions_path(result: Path) -> Path:
    """The file of predictions that belongs to a result."""
    return result.with_suffix(".npz")


def compare_results(a: Path, b: Path, seed: int = 0) -> dict[str, Any]:
    """The paired difference of two saved results on the clips both tested: headline of `a` less that of `b`.

    Raises:
        UserError: a file is missing, or the results are of different tasks.
    """
    named = {side: require_score(path) for side, path in (("a", a), ("b", b))}
    ours, theirs = matched(*(load_scored(predictions_path(path)) for path in (a, b)))
    for side, path in (("a", a), ("b", b)):
        if named[side].metric != ours.metric:
            raise UserError(
                f"{path} reports {named[side].metric} and the predictions beside it {ours.metric}; "
                "they belong to different runs of the evaluation: run it again"
            )
    gain = difference(ours, theirs, seed)
    return {
        "metric": ours.metric,
        "clips": len(ours.keys),
        **{
            side: {"path": str(path), "checkpoint": named[side].checkpoint, ours.metric: named[side].value}
            for side, path in (("a", a), ("b", b))
        },
        "difference": gain.value,
        "difference_ci": list(gain.ci),
        "seed": seed,
    }
