"""What is trained on: parts of face tracks, in an order and with changes that are functions of seed and position.

B samples, T frames, H height, W width, S waveform samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from avpretrain.data.text.order import WindowOrder
from avpretrain.methods.speaker.config import FRAME_SAMPLES, TrackDataConfig
from avpretrain.methods.speaker.model import TrackBatch


@runtime_checkable
class TrackClip(Protocol):
    """One face over time, with the audio of its video."""

    @property
    def faces(self) -> NDArray[np.uint8]:
        """[T, H, W], grey."""

    @property
    def waveform(self) -> NDArray[np.float32]:
        """[T * 640], in [-1, 1]."""

    @property
    def labels(self) -> NDArray[np.int8]:
        """[T]: 1 speaking and audible, 0 not, -1 unlabelled."""

    @property
    def video(self) -> str: ...

    @property
    def track(self) -> str: ...


@runtime_checkable
class Clips(Protocol):
    """Face tracks by their number."""

    @property
    def fingerprint(self) -> str:
        """Equal = the same tracks."""

    @property
    def frames(self) -> Sequence[int]:
        """Frames of each track."""

    def __len__(self) -> int: ...

    def read(self, number: int, start: int = 0, count: int | None = None) -> TrackClip:
        """So many frames of a track from one on; none = all that follow."""

    def key(self, number: int) -> str:
        """Name of a track."""

    def describe(self) -> dict[str, Any]:
        """What run.json says."""


class Samples:
    """Parts of tracks of one length in the order of training."""

    def __init__(self, clips: Clips, cfg: TrackDataConfig, seed: int) -> None:
        self.clips, self.cfg, self.seed = clips, cfg, seed
        self._order = WindowOrder(len(clips), seed)

    @property
    def fingerprint(self) -> str:
        return self.clips.fingerprint

    def __len__(self) -> int:
        return len(self.clips)

    def key(self, position: int) -> str:
        """Name of the track."""
        return self.clips.key(self._order.window(position))

    def describe(self) -> dict[str, Any]:
        """What run.json says; `clips` counts tracks."""
        return self.clips.describe()

    def batch(self, positions: Sequence[int]) -> TrackBatch:
        """The samples at these positions of training."""
        parts = [self._sample(position) for position in positions]
        faces, waveforms, labels, frames = (list(column) for column in zip(*parts, strict=True))
        return TrackBatch(
            faces_BTHW=torch.from_numpy(np.stack(faces)),
            waveform_BS=torch.from_numpy(np.stack(waveforms)),
            labels_BT=torch.from_numpy(np.stack(labels)),
            frames_B=torch.tensor(frames),
        )

    def _sample(self, position: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int8], int]:
        cfg, draws = self.cfg, np.random.default_rng((self.seed, position))
        start, flip, gain, mix, mix_gain, mixed = draws.random(6)
        number, length = self._order.window(position), cfg.frames * FRAME_SAMPLES
        count = min(self.clips.frames[number], cfg.frames)
        clip = self.clips.read(number, int(start * (self.clips.frames[number] - count + 1)), count)
        faces = np.zeros((cfg.frames, *clip.faces.shape[1:]), np.uint8)
        faces[:count] = clip.faces[:, :, :: -1 if flip < cfg.flip else 1]
        labels = np.full(cfg.frames, -1, np.int8)
        labels[:count] = clip.labels
        waveform = np.zeros(length, np.float32)
        waveform[: len(clip.waveform)] = clip.waveform
        if mix < cfg.mix:
            other = int(mixed * len(self.clips))
            added = self.clips.read(other, 0, min(count, self.clips.frames[other])).waveform
            level = decibels((mix_gain * 2 - 1) * cfg.mix_db) * _rms(clip.waveform) / max(_rms(added), 1e-6)
            waveform[: len(added)] += np.float32(min(level, 1e3)) * added
        waveform *= np.float32(decibels((gain * 2 - 1) * cfg.gain_db))
        return faces, waveform, labels, count


def decibels(value: float) -> float:
    """The factor of amplitude that so many decibels are."""
    return float(10 ** (value / 20))


def _rms(waveform: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))) if len(waveform) else 0.0
