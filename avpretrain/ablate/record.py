"""The JSON of one cell: what it ran, what that cost, and what came out."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpretrain.ablate.kinds import cost_of, fingerprint_of, sample_name
from avpretrain.ablate.matrix import AblationConfig, Cell
from avpretrain.config.reader import learnt_config, to_dict
from avpretrain.core.errors import UsageError
from avpretrain.core.files import read_json, write_json
from avpretrain.measures.runs import LOSSES, Run, read_run
from avpretrain.measures.scores import read_score
from avpretrain.methods.load import config_of

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Hashes of what decides a cell's numbers."""

    training: str
    """Of config, seed and training data."""
    whole: str
    """Of these and of the evaluations."""


def fingerprint(cell: Cell, settings: AblationConfig) -> Fingerprint:
    """What decides the numbers of a cell.

    Raises:
        UserError: a data set can't be read.
    """
    wanted = to_dict(settings)
    for key in ("base", "seeds"):
        wanted.pop(key)
    for probe, spec in zip(wanted["probes"], settings.probes, strict=True):
        probe["data"] = fingerprint_of(cell.config, spec.data)
    training = {"config": learnt_config(cell.config), "data": fingerprint_of(cell.config)}
    return Fingerprint(_hash(training), _hash({**training, "settings": wanted}))


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_done(cell: Cell, digest: Fingerprint) -> bool:
    """Whether the cell's JSON says that this very work was done.

    Raises:
        UserError: the JSON is damaged.
        UsageError: it is the result of another training.
    """
    if not cell.record.is_file():
        return False
    found = read_json(cell.record, "cell")
    if found.get("status") != "done":
        return False
    if found.get("training_hash") != digest.training:
        raise UsageError(
            f"{cell.record} is the result of another config or other data; choose another folder with --out, "
            f"or delete it and {cell.run}"
        )
    return bool(found.get("hash") == digest.whole)


def _head(cell: Cell, digest: Fingerprint, status: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "variant": cell.variant.name,
        "seed": cell.seed,
        "status": status,
        "training_hash": digest.training,
        "hash": digest.whole,
        "extends": list(cell.variant.extends),
        "changes": cell.variant.changes,
        "differences": cell.variant.differences,
    }


def write_failure(cell: Cell, digest: Fingerprint, stage: str, error: str) -> dict[str, Any]:
    """Notes that a cell failed at a stage, and why."""
    record = {**_head(cell, digest, "failed"), "stage": stage, "error": error}
    write_json(cell.record, record)
    return record


def write_record(
    cell: Cell, digest: Fingerprint, stage_seconds: dict[str, float], jobs: int, names: Mapping[str, str]
) -> dict[str, Any]:
    """Gathers what the cell's run folder holds.

    Args:
        stage_seconds: wall clock of each process, its start included.
        jobs: cells that ran at a time: speeds of cells that shared a machine say little.
        names: of probes that have one, by their files without the suffix.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    run = read_run(cell.run, config_of)
    record = {
        **_head(cell, digest, "done"),
        "config": learnt_config(run.config),
        "flops": cost_of(run.config, int(run.last["samples_total"])).details,
        "training": _training(run),
        "evaluations": [
            found
            for path in sorted((cell.run / "eval").glob("*.json"))
            if (found := _evaluation(path, names.get(path.stem)))
        ],
        "stage_seconds": stage_seconds,
        "jobs": jobs,
        "sample": sample_name(run.config),
        "data": run.info["data"],
        **{key: run.info[key] for key in ("parameters", "precision", "versions", "hardware", "commit")},
    }
    write_json(cell.record, record)
    return record


def _training(run: Run) -> dict[str, Any]:
    speeds = [float(line["clips_per_second"]) for line in run.lines]
    return {
        "clips": run.seen,
        "steps": run.last["step"],
        "seconds": run.seconds,
        "clips_per_second": run.clips_per_second,
        "median_clips_per_second": statistics.median(speeds),
        "data_wait_share": statistics.fmean(float(line["data_wait_share"]) for line in run.lines),
        "flops_total": run.flops_total,
        "peak_memory_bytes": run.peak_memory,
        "failed_clips": run.last["failed_clips"],
        "losses": {name: run.last[name] for name in (*LOSSES, "nll") if name in run.last},
    }


def _evaluation(path: Path, name: str | None) -> dict[str, Any]:
    """An evaluation without what the cell says already: origin, settings, lists by class."""
    result = read_json(path, "evaluation result")
    kept = ("task", "label", "modality", "metric", "ci", "gallery", "clips", "mel_hz", "methods", "settings",
            "audio_to_video", "video_to_audio")  # fmt: skip
    found = {key: result[key] for key in kept if key in result} | ({"name": name} if name else {})
    score = read_score(path)
    if score is not None:
        found |= {"value": score.value, "ci": score.interval, "baselines": score.baselines}
    return found
