"""Rows of a table to tracks on a grid of 25 frames a second, and those of one video to clips.

N rows, T frames of a track, S waveform samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avpretrain.core.errors import UserError
from avpretrain.data.choices import Limits
from avpretrain.data.container import DecodeError, probe_media
from avpretrain.data.media import Segment, Source
from avpretrain.methods.speaker.ava import SPEAKING, AvaRows
from avpretrain.methods.speaker.config import FPS, FRAME_SAMPLES, SAMPLE_RATE
from avpretrain.methods.speaker.data import TrackClip
from avpretrain.methods.speaker.tracks.crops import at_grid, crop_face, grey

MAX_HOURS = 6.0
"""Longest video that is cut: AVA's are whole films."""
AROUND = 5
"""Frames that are read before and after what is wanted."""
LABEL_REACH = 0.6
"""A frame has the label of the row nearest in time, if that is no further away than half a frame of the grid or than
this share of the rows' usual distance."""


@dataclass(frozen=True)
class Boxes:
    """A face over time: its boxes and labels on the grid."""

    track: str
    first: int
    """Number of the first frame on the grid."""
    box_T4: NDArray[np.float64]
    label_T: NDArray[np.int8]

    @property
    def end(self) -> int:
        """Number after the last frame."""
        return self.first + len(self.label_T)


def tracks_of(rows: AvaRows, max_gap: float, min_frames: int) -> dict[str, list[Boxes]]:
    """The tracks of each video, in the order of their beginning.

    Args:
        rows: of a table.
        max_gap: seconds without a row after which a track ends and another begins.
        min_frames: shorter ones are left out.

    Raises:
        UserError: a row stands twice, a box is impossible, or a face stands in two videos.
    """
    _check_boxes(rows)
    order_N = np.lexsort((rows.time_N, rows.entity_N))
    ends = np.append(np.flatnonzero(np.diff(rows.entity_N[order_N])) + 1, len(order_N))
    found: dict[str, list[Boxes]] = {video: [] for video in rows.videos}
    start = 0
    for end in ends:
        own_N, start = order_N[start:end], int(end)
        if not len(own_N):
            continue
        if (rows.video_N[own_N] != rows.video_N[own_N[0]]).any():
            two = [rows.videos[i] for i in np.unique(rows.video_N[own_N])[:2]]
            raise UserError(
                f"{rows.path}: face {rows.entities[rows.entity_N[own_N[0]]]} is in {two[0]} and in {two[1]}"
            )
        steps = np.diff(rows.time_N[own_N])
        if len(steps) and steps.min() <= 0:
            raise UserError(f"{rows.path} holds row {rows.uid(int(own_N[steps.argmin()]))} twice")
        pieces = np.split(own_N, np.flatnonzero(steps > max_gap) + 1)
        usual = float(np.median(steps)) if len(steps) else 1 / FPS
        for piece_N in pieces:
            boxes = _on_grid(rows, piece_N, usual)
            if len(boxes.label_T) >= min_frames:
                found[rows.videos[rows.video_N[piece_N[0]]]].append(boxes)
    return {video: sorted(tracks, key=lambda t: (t.first, t.track)) for video, tracks in found.items() if tracks}


def _check_boxes(rows: AvaRows) -> None:
    box_N4 = rows.box_N4
    wrong_N = (box_N4[:, 2] <= box_N4[:, 0]) | (box_N4[:, 3] <= box_N4[:, 1]) | (np.abs(box_N4 - 0.5) > 1).any(axis=1)
    wrong_N |= (rows.time_N < 0) | (rows.time_N > 3600 * MAX_HOURS)
    if wrong_N.any():
        row = int(np.flatnonzero(wrong_N)[0])
        told = ",".join(f"{value:g}" for value in (rows.time_N[row], *box_N4[row]))
        raise UserError(
            f"{rows.path}: row {row + 1} has time and box {told}; boxes are x1,y1,x2,y2 as shares of the frame's width "
            f"and height, and times are seconds, up to {MAX_HOURS:g} hours"
        )


def _on_grid(rows: AvaRows, row_N: NDArray[np.int64], usual: float) -> Boxes:
    """Boxes between rows lie between theirs; labels are those of rows near enough."""
    time_N = rows.time_N[row_N]
    first, last = math.ceil(time_N[0] * FPS - 0.5 - 1e-6), math.ceil(time_N[-1] * FPS - 0.5 - 1e-6)
    at_T = np.arange(first, last + 1) / FPS
    after_T = np.clip(np.searchsorted(time_N, at_T), 0, len(time_N) - 1)
    before_T = np.clip(after_T - 1, 0, None)
    nearer_T = np.where(np.abs(at_T - time_N[before_T]) <= np.abs(at_T - time_N[after_T]), before_T, after_T)
    known_T = np.abs(at_T - time_N[nearer_T]) <= max(0.5 / FPS, LABEL_REACH * min(usual, 0.5)) + 1e-6
    label_T = (rows.label_N[row_N][nearer_T] == SPEAKING).astype(np.int8)
    label_T[~known_T] = -1
    box_T4 = np.stack([np.interp(at_T, time_N, rows.box_N4[row_N, i]) for i in range(4)], axis=1)
    return Boxes(rows.entities[rows.entity_N[row_N[0]]], first, box_T4, label_T)


def cut_video(path: Path, video: str, tracks: list[Boxes], size: int, margin: float) -> Iterator[TrackClip]:
    """The clips of a video's tracks, in their order, from one pass over it.

    Frames that the video does not have have no label.

    Raises:
        DecodeError: it does not decode, has no video or no audio, or ends before a track begins.
    """
    first = max(0, min(track.first for track in tracks) - AROUND)
    last = max(track.end for track in tracks) + AROUND
    segment = Segment(first / FPS, last / FPS, is_whole_file=False)
    seconds = probe_media(path).duration
    if 0 < seconds <= segment.start:
        raise DecodeError(f"ends before its first track begins (it lasts {seconds:.1f} s)")
    source = Source(path, segment, Limits(max_hours=MAX_HOURS))
    if not source.has_video or not source.has_audio:
        raise DecodeError(f"has no {'audio' if source.has_video else 'video'}")
    pcm_S = source.sound(SAMPLE_RATE)
    if pcm_S is None:
        raise DecodeError("has no audio that decodes")
    faces = [np.zeros((len(track.label_T), size, size), np.uint8) for track in tracks]
    shown = [np.zeros(len(track.label_T), bool) for track in tracks]
    waiting, running = list(range(len(tracks))), list[int]()
    for at in at_grid(source.frames(), causal=True):
        number = first + at.number
        while waiting and tracks[waiting[0]].first <= number:
            running.append(waiting.pop(0))
        running = [i for i in running if number < tracks[i].end]
        if not running:
            if not waiting:
                break
            continue
        picture_HW = grey(at.frame)
        for i in running:
            place = number - tracks[i].first
            box = tuple(tracks[i].box_T4[place])
            faces[i][place] = crop_face(picture_HW, box, size, margin, source.aspect)
            shown[i][place] = True
    for track, faces_THW, shown_T in zip(tracks, faces, shown, strict=True):
        if not shown_T.any():
            continue
        _fill(faces_THW, shown_T)
        begin = (track.first - first) * FRAME_SAMPLES
        own_S = pcm_S[begin : begin + len(track.label_T) * FRAME_SAMPLES].astype(np.float32) / 32768
        waveform_S = np.pad(own_S, (0, len(track.label_T) * FRAME_SAMPLES - len(own_S)))
        label_T = np.where(shown_T, track.label_T, np.int8(-1)).astype(np.int8)
        yield TrackClip(faces_THW, waveform_S, label_T, video, track.track, float(Fraction(track.first, FPS)))


def _fill(faces_THW: NDArray[np.uint8], shown_T: NDArray[np.bool_]) -> None:
    """Puts the frame before (or else the first one) where the video had none."""
    places = np.where(shown_T, np.arange(len(shown_T)), -1)
    nearest = np.maximum.accumulate(places)
    nearest[nearest < 0] = int(np.flatnonzero(shown_T)[0])
    faces_THW[:] = faces_THW[nearest]
