"""What the command line does, as calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avpretrain.config.train import EngineConfig
    from avpretrain.evaluation.longform import Row
    from avpretrain.evaluation.probe.run import Outcome as ProbeOutcome
    from avpretrain.evaluation.probe.run import ProbeConfig
    from avpretrain.evaluation.settings import Modality, Per
    from avpretrain.methods.diffmavil.model import DiffMAViL
    from avpretrain.training.loop import Outcome


def train(cfg: EngineConfig, stop_at: int | None = None) -> Outcome:
    """Trains what a config says, or goes on with the run in its folder, to the bit on the same number of ranks.

    Args:
        cfg: of a registered method, or of a dotted class of your own (`methods.load.load_config` reads a preset).
        stop_at: ends after the step that reaches this many clips, with a checkpoint.

    Raises:
        UsageError: the config does not fit the data, the ranks, or the run that the folder holds.
        UserError: training failed; the message says what to do.
    """
    from avpretrain.methods.load import make_method
    from avpretrain.training import loop

    return loop.train(cfg, make_method, stop_at)


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


def probe(checkpoint: str | Path, shards: str | Sequence[str], cfg: ProbeConfig) -> ProbeOutcome:
    """Fits a classifier on frozen features; the outcome holds the result, its baselines, and the predictions.

    Args:
        checkpoint: a run folder, a checkpoint or a saved model.
        shards: folders or URLs written by `avpretrain shards`.
        cfg: `ProbeConfig(label=NAME, ...)`.

    Raises:
        UserError: no weights, no such label, no test clips, or too few clips with the modality.
    """
    from avpretrain.evaluation.probe.run import run_probe

    return run_probe(Path(checkpoint), (shards,) if isinstance(shards, str) else tuple(shards), cfg)
