"""Face tracks made by rule, in memory, and a method that trains on them in a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avpretrain.methods.load import config_of
from avpretrain.methods.speaker.config import FRAME_SAMPLES, SpeakerConfig
from avpretrain.methods.speaker.method import Speaker
from avpretrain.methods.speaker.samples import Clips

SIZE = 16


@dataclass(frozen=True)
class Track:
    """A clip of a track."""

    faces: NDArray[np.uint8]
    waveform: NDArray[np.float32]
    labels: NDArray[np.int8]
    video: str
    track: str


class MadeTracks:
    """Mouths that open with the loudness of noise (label 1), chew in silence (0), or are shut while others speak."""

    fingerprint = "made"

    def __init__(self, count: int = 24, shortest: int = 30, seed: int = 0) -> None:
        self.seed = seed
        self.frames = [shortest + index % 5 for index in range(count)]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> Track:
        return self.read(number)

    def key(self, number: int) -> str:
        return f"{number}"

    def describe(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "clips": len(self), "split": "train"}

    def read(self, number: int, start: int = 0, count: int | None = None) -> Track:
        draws = np.random.default_rng((self.seed, number))
        frames, kind = self.frames[number], number % 3
        voice = 0.3 + 0.7 * draws.random(frames // 3 + 1).repeat(3)[:frames]
        faces = np.full((frames, SIZE, SIZE), 150, np.uint8)
        for face, opened in zip(faces, voice * (kind != 2), strict=True):
            half = round(6 * opened)
            face[8 - half : 8 + half + 1, 3:12] = 20
        waveform = (
            voice.repeat(FRAME_SAMPLES) * draws.normal(size=frames * FRAME_SAMPLES) * (0.2 if kind != 1 else 1e-4)
        )
        labels = np.full(frames, int(kind == 0), np.int8)
        labels[:2] = -1
        end = frames if count is None else start + count
        part = slice(start * FRAME_SAMPLES, end * FRAME_SAMPLES)
        return Track(
            faces[start:end], waveform.astype(np.float32)[part], labels[start:end], f"video{number // 2}", f"{number}"
        )


class MadeSpeaker(Speaker):
    """The method on `MadeTracks`."""

    def tracks(self) -> Clips:
        return MadeTracks()


VALUES: dict[str, Any] = {
    "name": "speaker",
    "method": "tests.support.tracks.MadeSpeaker",
    "model": {
        "width": 16,
        "encoder": {"face_size": SIZE, "channels": [4, 8], "mels": 8, "audio_hidden": 16},
        "fusion": {"past": 3, "future": 2, "heads": 2},
    },
    "data": {"frames": 32},
    "schedule": {"samples": 160, "batch": {"size": 8}},
    "optim": {"lr": 0.01, "warmup": 0.1},
    "run": {"tracker": "none", "log_every": 4, "checkpoint_every": 80, "keep_checkpoints": 0, "preview_clips": 0},
}


def track_config(run_dir: object, **sections: Any) -> SpeakerConfig:
    """`VALUES` in a folder; keyword arguments update its sections."""
    values = {**VALUES, "output_dir": str(run_dir)}
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
    cfg = config_of(values)
    assert isinstance(cfg, SpeakerConfig)
    return cfg
