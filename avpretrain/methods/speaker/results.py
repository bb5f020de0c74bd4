"""How well a detector ranks frames, next to the window that it sees: results in a run's folder. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UserError
from avpretrain.core.files import read_json, write_json
from avpretrain.measures.results import Result
from avpretrain.methods.speaker.config import FusionKind, SpeakerConfig, SpeakerModelConfig

RESULT_NAME = Path("eval") / "speakers.json"
"""Written by studies; `avpretrain speakers TRACKS RUN` writes `speakers_SPLIT_....json` next to it."""
METRIC = "average_precision"


@dataclass(frozen=True, kw_only=True)
class WindowResult(Result):
    """Average precision of one trained model, over all labelled frames of a split."""

    label: str
    """Of the data."""
    kind: FusionKind
    past: int
    """As configured, of each block; -1 = all."""
    future: int
    """As configured; -1 = all."""
    seed: int
    """Of the training."""
    window_past: int | None
    """Frames before its own that a score depends on, end to end; none = all."""
    window_future: int | None
    """Frames after its own; none = all."""
    parameters: int
    average_precision: float
    frames: int
    """Labelled."""
    positives: int
    """Of them, speaking."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, named as results of other evaluations are where they mean the same."""
        return {"task": "speakers", "metric": METRIC, **super().to_json()}


def make_result(
    cfg: SpeakerModelConfig, label: str, seed: int, parameters: int, value: float, frames: int, positives: int
) -> WindowResult:
    """The result of a model of this config."""
    return WindowResult(
        label=label,
        kind=cfg.fusion.kind,
        past=cfg.fusion.past,
        future=cfg.fusion.future,
        seed=seed,
        window_past=cfg.audio_window.past,
        window_future=cfg.audio_window.future,
        parameters=parameters,
        average_precision=value,
        frames=frames,
        positives=positives,
    )


def write_result(run: Path, result: WindowResult) -> None:
    """Puts it into a run's folder."""
    (run / RESULT_NAME).parent.mkdir(parents=True, exist_ok=True)
    write_json(run / RESULT_NAME, result.to_json())


def read_result(run: Path) -> WindowResult | None:
    """What a study wrote into a run's folder; none where it has not.

    Raises:
        UserError: the file is damaged.
    """
    path = run / RESULT_NAME
    return _read(path, None, 0) if path.is_file() else None


def read_results(run: Path, cfg: EngineConfig, parameters: int) -> list[WindowResult]:
    """All results of a run, one for each data set that its model was tested on.

    Args:
        cfg: the run's.
        parameters: of its model.

    Raises:
        UserError: a file is damaged.
    """
    paths = sorted((run / "eval").glob("speakers*.json"))
    return [_read(path, cfg if isinstance(cfg, SpeakerConfig) else None, parameters) for path in paths]


def _read(path: Path, cfg: SpeakerConfig | None, parameters: int) -> WindowResult:
    values = read_json(path, "evaluation result")
    try:
        if cfg is None or "score" not in values:
            return WindowResult.from_json(values)
        score, label = values["score"], f"{Path(values['data']).name}, {values['split']}"
        found = float(score["average_precision"]), int(score["rows"]), int(score["positives"])
        return make_result(cfg.model, label, cfg.seed, parameters, *found)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is no result of an active speaker detector; remove it and evaluate again") from None
