"""What others need of a result on disk: one number, its interval and its baselines. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpretrain.core.errors import UserError
from avpretrain.core.files import read_json

SHARES = frozenset({"accuracy", "map", "auc", "recall_at_1", "recall_at_5", "recall_at_10"})
"""Metrics in [0, 1] that are read as percentages, the higher the better; others are shown as they are."""


@dataclass(frozen=True, slots=True)
class Score:
    """The headline of a result of `probe`, `finetune` or `retrieve`."""

    task: str
    """Such as linear_probe, finetune or retrieval."""
    label: str
    """What was learned; of retrieval, the split that was searched."""
    modality: str
    """audio, video or both; empty for retrieval, which has no single one."""
    metric: str
    value: float
    interval: tuple[float, float] | None
    """95%; none where it is unknown."""
    baselines: dict[str, float]
    """The same metric of what needs no pretraining; those without a number are left out."""
    seen: int | None
    """Clips that the evaluated weights had seen; none = the result does not say."""
    checkpoint: dict[str, Any]
    """Where the weights came from: path, sha256."""

    @property
    def words(self) -> str:
        """'linear probe of class (audio)', or 'retrieval in split test'."""
        task = self.task.replace("_", " ") or "result"
        if not self.label:
            return task
        return f"{task} of {self.label} ({self.modality})" if self.modality else f"{task} in split {self.label}"


def number(value: Any) -> float | None:
    """A finite number as float; none for anything else."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def bounds(ci: Any) -> tuple[float, float] | None:
    """An interval as results record it, [low, high]; none where it is missing or unknown."""
    if not isinstance(ci, list | tuple) or len(ci) != 2:
        return None
    low, high = number(ci[0]), number(ci[1])
    return None if low is None or high is None else (low, high)


def points(ci: Any, sign: str = "", digits: int = 1, between: str = " to ") -> str:
    """'80.6 to 87.6': an interval in percent, or 'unknown'."""
    interval = bounds(ci)
    return between.join(f"{100 * bound:{sign}.{digits}f}" for bound in interval) if interval else "unknown"


def read_score(path: Path) -> Score | None:
    """The headline of a result; none where the file holds a result without one, such as that of `spectrum`.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    result = read_json(path, "evaluation result")
    if not isinstance(result, dict) or not isinstance(metric := result.get("metric"), str):
        return None
    value, weights = number(result.get(metric)), result.get("checkpoint")
    if value is None:
        return None
    weights = weights if isinstance(weights, dict) else {}
    others = result.get("baselines")
    baselines = {
        str(name): number(other.get(metric)) if isinstance(other, Mapping) else None
        for name, other in (others.items() if isinstance(others, dict) else ())
    }
    seen = number(weights.get("seen"))
    return Score(
        task=str(result.get("task") or ""),
        label=str(result.get("label") or ""),
        modality=str(result.get("modality") or ""),
        metric=metric,
        value=value,
        interval=bounds(result.get("ci")),
        baselines={name: theirs for name, theirs in baselines.items() if theirs is not None},
        seen=None if seen is None else int(seen),
        checkpoint=weights,
    )


def require_score(path: Path) -> Score:
    """As `read_score`, where there has to be one.

    Raises:
        UserError: the file holds no result with a headline.
    """
    score = read_score(path)
    if score is None:
        raise UserError(f"{path} holds no result of probe, finetune or retrieve; name the JSON that one of them wrote")
    return score
