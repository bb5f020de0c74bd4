"""What the command line does, as calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpretrain.config.changes import with_changes
from avpretrain.data.write.cached import as_shards

if TYPE_CHECKING:
    from avpretrain.config.train import EngineConfig
    from avpretrain.evaluation.longform import Row
    from avpretrain.evaluation.probe.run import ProbeConfig
    from avpretrain.evaluation.settings import Modality, Per
    from avpretrain.evaluation.setup import Outcome as ProbeOutcome
    from avpretrain.methods.diffmavil.model import DiffMAViL
    from avpretrain.training.loop import Outcome

__all__ = ["embed", "probe", "train"]


def train(
    config: EngineConfig | str,
    stop_at: int | None = None,
    *,
    data: str | Path | Sequence[str | Path] = (),
    out: str | Path = "",
    changes: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains what a config says, or resumes the run in its folder, to the bit on the same number of ranks.

        train("small_diffmavil", data="videos/", out="runs/x", changes={"schedule.epochs": 5})

    Args:
        config: a preset's name, a YAML file, or a config of any method.
        stop_at: ends after the step that reaches this many clips, with a checkpoint.
        data: sharded data sets, or plain folders of media, which are sharded once into a cache; none = the config's.
        out: folder of the run; none = the config's.
        changes: keys of the config, dotted, and their values.

    Raises:
        UsageError: a key is wrong, or the config does not fit the data, the ranks, or the run that the folder holds.
        UserError: no file of a folder is usable, or training failed; the message says what to do.
    """
    from avpretrain.methods.load import load_config, make_method
    from avpretrain.training import loop

    cfg = load_config(config) if isinstance(config, str) else config
    wanted = dict(changes or {})
    if roots := _sharded(data):
        wanted["data.shards"] = list(roots)
    if out:
        wanted["output_dir"] = str(out)
    return loop.train(with_changes(cfg, wanted) if wanted else cfg, make_method, stop_at)


def _sharded(data: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    return as_shards((data,) if isinstance(data, str | Path) else data)


def embed(
    model: str | Path | DiffMAViL, files: Sequence[str | Path], modality: Modality = "both", per: Per = "file"
) -> list[Row]:
    """Vectors of audio and video files of any length, in the order of the files.

    Args:
        model: a run folder, a checkpoint or a saved model; or a model that is loaded, on its device.
        modality: what to embed; files without it give no row ('both' takes what there is).
        per: one vector a file, a window of the length the model was trained on, or a step in time.

    Raises:
        UserError: there are no weights, or they are damaged.
        DecodeError: a file can't be read, or has nothing of the modality.
    """
    from avpretrain.evaluation.longform import embed_file
    from avpretrain.methods.load import load_model

    loaded = load_model(Path(model)) if isinstance(model, str | Path) else model
    return [row for file in files for row in embed_file(loaded, Path(file), modality, per)]


def probe(checkpoint: str | Path, data: str | Path | Sequence[str | Path], settings: ProbeConfig | str) -> ProbeOutcome:
    """Fits a classifier on frozen features; the outcome holds the result, its baselines, and the predictions.

        probe("runs/x", "labelled_videos/", "class").result["accuracy"]

    Args:
        checkpoint: a run folder, a checkpoint or a saved model.
        data: sharded data sets, or plain folders of media with a table of labels, sharded once into a cache.
        settings: `ProbeConfig(label=NAME, ...)`, or the label's name alone.

    Raises:
        UserError: no weights, no such label, no test clips, or too few clips with the modality.
    """
    from avpretrain.evaluation.probe.run import ProbeConfig, run_probe

    cfg = ProbeConfig(label=settings) if isinstance(settings, str) else settings
    return run_probe(Path(checkpoint), _sharded(data), cfg)
