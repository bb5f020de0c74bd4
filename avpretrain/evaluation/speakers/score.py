"""Average precision of a detector on a set of face tracks, in AVA's sense, with intervals and a baseline.

N labelled frames, R resamples. Tracks are shared among ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray

from avpretrain.core.errors import UserError
from avpretrain.measures import intervals
from avpretrain.measures.results import Result
from avpretrain.methods.speaker.ava import AvaRows, read_rows, write_predictions
from avpretrain.methods.speaker.config import FPS
from avpretrain.methods.speaker.data import TrackClips
from avpretrain.methods.speaker.evaluate import track_scores
from avpretrain.methods.speaker.metric import SpeakerScore, evaluate, score_rows, weighted_average_precision
from avpretrain.methods.speaker.model import SpeakerModel
from avpretrain.methods.speaker.tracks.make import frame_loudness

RESAMPLES = 200
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SpeakerResult(Result):
    """What a detector's scores of a split are worth."""

    split: str
    score: SpeakerScore
    interval: tuple[float, float] | None
    """95%, by bootstrap over videos; none where there is one video, or no resample differs."""
    kinds: dict[str, float | None]
    """Average precision on stored tracks, and on these with one kind of mixture: swapped, shifted, mixed."""
    loudness: float
    """Average precision by the loudness of each frame."""
    tracks: int
    videos: int
    ava: SpeakerScore | None = None
    """Of the rows of a table, where one was given."""


@dataclass(frozen=True)
class _Scored:
    """One track's frames."""

    number: int
    score_T: NDArray[np.float32]
    label_T: NDArray[np.int8]
    loudness_T: Floats


def measure(
    model: SpeakerModel,
    clips: TrackClips,
    seed: int = 0,
    table: Path | None = None,
    predictions: Path | None = None,
) -> SpeakerResult:
    """Scores every track once, whole, on all ranks together; every rank gets the result.

    Args:
        model: on its device, in evaluation mode.
        clips: of one split.
        seed: of the bootstrap.
        table: AVA's ground truth for these tracks, whose rows are scored, too.
        predictions: where the scores of its rows go, as AVA's evaluation takes them.

    Raises:
        UserError: no frame has label 1, or a row of the table has no track.
    """
    state = PartialState()
    rows = read_rows(table) if table is not None else None
    mine = []
    for number in range(state.process_index, len(clips), state.num_processes):
        clip = clips[number]
        mine.append(_Scored(number, track_scores(model, clip), clip.labels, frame_loudness(clip)))
    found = sorted(gather_object(mine), key=lambda scored: scored.number)
    known = [scored.label_T >= 0 for scored in found]
    score_N = np.concatenate([s.score_T[k] for s, k in zip(found, known, strict=True)]).astype(np.float64)
    loud_N = np.concatenate([s.loudness_T[k] for s, k in zip(found, known, strict=True)])
    positive_N = np.concatenate([s.label_T[k] == 1 for s, k in zip(found, known, strict=True)])
    counts = [int(k.sum()) for k in known]
    names = [clips.place(scored.number)[0] for scored in found]
    videos = {name: i for i, name in enumerate(dict.fromkeys(names))}
    video_N = np.repeat([videos[name] for name in names], counts)
    kind_N = np.repeat([clips.kind(scored.number) for scored in found], counts)
    score = score_rows(score_N, positive_N)
    ava = None
    if rows is not None:
        told_N = row_scores(rows, clips, [scored.score_T for scored in found])
        ava = score_rows(told_N, rows.label_N == 1)
        if predictions is not None and state.is_main_process:
            write_predictions(predictions, rows, told_N)
            ava = evaluate(rows, read_rows(predictions, scored=True))
    return SpeakerResult(
        split=clips.split,
        score=score,
        interval=_interval(score_N, positive_N, video_N, len(videos), seed),
        kinds=_by_kind(score_N, positive_N, kind_N),
        loudness=score_rows(loud_N, positive_N).average_precision,
        tracks=len(clips),
        videos=len(videos),
        ava=ava,
    )


def _interval(
    score_N: Floats, positive_N: NDArray[np.bool_], video_N: NDArray[np.int64], videos: int, seed: int
) -> tuple[float, float] | None:
    def statistic(weight_RV: Floats) -> Floats:
        return np.concatenate(
            [weighted_average_precision(score_N, positive_N, row[None, video_N]) for row in weight_RV]
        )

    low, high = intervals.interval(statistic, videos, seed, RESAMPLES)
    return None if np.isnan(low) else (low, high)


def _by_kind(score_N: Floats, positive_N: NDArray[np.bool_], kind_N: NDArray[Any]) -> dict[str, float | None]:
    """Average precision with each kind of mixture beside the stored tracks, and of those alone."""
    values: dict[str, float | None] = {}
    for kind in dict.fromkeys(kind_N.tolist()):
        chosen_N = (kind_N == "stored") | (kind_N == kind)
        value = weighted_average_precision(score_N, positive_N, chosen_N[None].astype(np.float64))[0]
        values[kind] = None if np.isnan(value) else float(value)
    return values


def row_scores(rows: AvaRows, clips: TrackClips, scores: Sequence[NDArray[np.float32]]) -> Floats:
    """[N]: of each row of a table, the score of its face's frame that is nearest in time.

    Args:
        rows: the table.
        clips: made from it.
        scores: of each of the clips.

    Raises:
        UserError: a face of the table has no track, or none at that time.
    """
    pieces: dict[str, list[tuple[float, int]]] = {}
    for number in range(len(clips)):
        if clips.kind(number) == "stored":
            _, track, start, _ = clips.place(number)
            pieces.setdefault(track, []).append((start, number))
    told_N = np.empty(len(rows))
    order_N = np.argsort(rows.entity_N, kind="stable")
    starts = np.searchsorted(rows.entity_N[order_N], np.arange(len(rows.entities) + 1))
    for code, entity in enumerate(rows.entities):
        own_N = order_N[starts[code] : starts[code + 1]]
        if entity not in pieces:
            raise UserError(
                f"face {entity} of {rows.path} has no track in split '{clips.split}'; make tracks of all faces "
                "(--min-frames 1), or name the table of this split"
            )
        best_N, away_N = np.full(len(own_N), np.nan), np.full(len(own_N), np.inf)
        for start, number in pieces[entity]:
            place_N = np.clip(np.rint((rows.time_N[own_N] - start) * FPS), 0, len(scores[number]) - 1).astype(int)
            off_N = np.abs(start + place_N / FPS - rows.time_N[own_N])
            nearer_N = off_N < away_N
            best_N[nearer_N] = scores[number][place_N[nearer_N]]
            away_N = np.minimum(away_N, off_N)
        if (away_N > 1 / FPS).any():
            row = int(own_N[away_N.argmax()])
            raise UserError(
                f"row {rows.uid(row)} of {rows.path} has no track at its time in split '{clips.split}'; make tracks of "
                "all faces (--min-frames 1)"
            )
        told_N[own_N] = best_N
    return told_N
