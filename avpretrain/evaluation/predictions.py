"""Scores of test clips, what they are worth with 95% intervals, and what they are worth beside other scores.

N clips, C classes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path, check_zip
from avpretrain.measures import intervals
from avpretrain.measures.metrics import (
    MULTI_LABEL,
    PROPORTIONS,
    SINGLE_LABEL,
    Metric,
    average_precision,
    by_class,
    without_positives,
)
from avpretrain.measures.results import Estimate

MAX_PREDICTIONS_BYTES = 1 << 30
"""Largest file of predictions, unpacked."""


@dataclass(frozen=True)
class Predictions:
    """Scores of test clips by a classifier that was chosen without them."""

    keys: tuple[str, ...]
    classes: tuple[str, ...]
    scores_NC: NDArray[np.floating]
    target: NDArray[np.generic]
    """Class index [N], or bool [N, C]."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """The task's metrics; the first is the headline."""
        return SINGLE_LABEL if self.target.ndim == 1 else MULTI_LABEL

    @property
    def metric(self) -> str:
        """Name of the headline: accuracy, or map where clips have several classes."""
        return next(iter(self.metrics))

    def statistic(self, name: str) -> intervals.Statistic:
        """A metric of these predictions as a function of the clips' weights."""
        return lambda weight_RN: self.metrics[name](self.scores_NC, self.target, weight_RN)

    def save(self, path: Path) -> None:
        """Writes an npz without pickles: keys, classes, scores (float32), target."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, keys=np.array(self.keys), classes=np.array(self.classes), target=self.target,
                scores=self.scores_NC.astype(np.float32),
            )  # fmt: skip


@dataclass(frozen=True)
class Ranks:
    """Rank of each clip's own sound or picture among all of the gallery, 1 = first; from retrieval, in place of scores.

    It has what `Predictions` has for a paired comparison.
    """

    keys: tuple[str, ...]
    audio_to_video_N: NDArray[np.float64]
    video_to_audio_N: NDArray[np.float64]

    metric = "recall_at_1"

    def statistic(self, name: str) -> intervals.Statistic:
        """Recall at 1, averaged over the two directions, as a function of the clips' weights."""
        hits_N = ((self.audio_to_video_N <= 1).astype(float) + (self.video_to_audio_N <= 1)) / 2
        return lambda weight_RN: weight_RN @ hits_N / weight_RN.sum(axis=1)

    def save(self, path: Path) -> None:
        """Writes an npz without pickles: keys, audio_to_video, video_to_audio."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, keys=np.array(self.keys), audio_to_video=self.audio_to_video_N,
                video_to_audio=self.video_to_audio_N,
            )  # fmt: skip


Scored = Predictions | Ranks


def load_scored(path: Path) -> Scored:
    """What lies beside a result.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        check_zip(path, MAX_PREDICTIONS_BYTES)
        with np.load(path) as file:
            keys = tuple(file["keys"].tolist())
            if "audio_to_video" in file:
                return Ranks(keys, file["audio_to_video"], file["video_to_audio"])
            return Predictions(keys, tuple(file["classes"].tolist()), file["scores"], file["target"])
    except FileNotFoundError:
        raise UserError(f"no predictions at {path}; they are written beside each result") from None
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} holds no predictions ({error}); run the evaluation again") from None


def summarise(predictions: Predictions, seed: int) -> dict[str, Any]:
    """Every metric of the task; `ci` is the headline's interval, `cis` holds those of all."""
    clips = len(predictions.target)
    estimates = {
        name: intervals.estimate(
            predictions.statistic(name), clips, seed, intervals.wilson if name in PROPORTIONS else None
        )
        for name in predictions.metrics
    }
    summary: dict[str, Any] = {"metric": predictions.metric, **{name: value.value for name, value in estimates.items()}}
    summary["ci"] = list(estimates[predictions.metric].ci)
    summary["cis"] = {name: list(value.ci) for name, value in estimates.items()}
    if predictions.target.ndim == 2:
        summary["classes_without_positives"] = [predictions.classes[i] for i in without_positives(predictions.target)]
    return summary


def class_values(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Accuracy of each class's clips, or its average precision, and its clips, [C] each; NaN or 0 without clips."""
    classes, target = len(predictions.classes), predictions.target
    if target.ndim == 1:
        target_N = target.astype(np.int64)
        count_C = np.bincount(target_N, minlength=classes)
        right_N = predictions.scores_NC.argmax(axis=1) == target_N
        return np.bincount(target_N, right_N, classes) / np.maximum(count_C, 1), count_C
    value_C = by_class(average_precision, predictions.scores_NC, target, np.ones((1, len(target))))[0]
    return value_C, target.astype(bool).sum(axis=0)


def difference(a: Scored, b: Scored, seed: int) -> Estimate:
    """Headline metric of `a` less that of `b` on the same clips, with a paired bootstrap interval.

    Where no resample differs from another, the interval has a closed form (proportions) or is unknown (mAP).
    """
    of_a, of_b = a.statistic(a.metric), b.statistic(a.metric)
    estimate = intervals.estimate(lambda weight_RN: of_a(weight_RN) - of_b(weight_RN), len(a.keys), seed)
    if a.metric in PROPORTIONS and estimate.ci == (None, None) and estimate.value is not None:
        return Estimate(value=estimate.value, ci=intervals.agresti_min(estimate.value, len(a.keys)))
    return estimate


def with_baselines(ours: Predictions, others: Mapping[str, Predictions], seed: int) -> dict[str, Any]:
    """Our summary, and under `baselines` each other's, with the paired difference ours less theirs."""
    baselines = {}
    for name, theirs in others.items():
        gain = difference(ours, theirs, seed)
        baselines[name] = {**summarise(theirs, seed), "difference": gain.value, "difference_ci": list(gain.ci)}
    return {**summarise(ours, seed), "baselines": baselines}


def matched(a: Scored, b: Scored) -> tuple[Scored, Scored]:
    """Both on the clips they share, in the order of `a`.

    Raises:
        UserError: they share none, or are of different tasks; ranks of different galleries are that too.
    """
    if isinstance(a, Ranks) and isinstance(b, Ranks):
        if set(a.keys) != set(b.keys):
            raise UserError("the two retrievals searched different galleries, so their ranks can't be compared")
        places = {key: i for i, key in enumerate(b.keys)}
        place = [places[key] for key in a.keys]
        return a, Ranks(a.keys, b.audio_to_video_N[place], b.video_to_audio_N[place])
    if isinstance(a, Ranks) or isinstance(b, Ranks):
        raise UserError("the two results are of different tasks: one is a retrieval")
    if a.classes != b.classes or a.target.ndim != b.target.ndim:
        raise UserError("the two results are of different tasks: their classes differ")
    places = {key: i for i, key in enumerate(b.keys)}
    shared = [(i, places[key]) for i, key in enumerate(a.keys) if key in places]
    if not shared:
        raise UserError("the two results share no test clip")
    return _take(a, [i for i, _ in shared]), _take(b, [j for _, j in shared])


def _take(predictions: Predictions, rows: list[int]) -> Predictions:
    keys = tuple(predictions.keys[i] for i in rows)
    return Predictions(keys, predictions.classes, predictions.scores_NC[rows], predictions.target[rows])
