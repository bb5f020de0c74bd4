"""How a source becomes shards: what can be chosen. Nothing here decodes, so that help comes at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from avpretrain.core.errors import UsageError
from avpretrain.data.choices import Limits, Need, SourceName

__all__ = ["Engine", "ShardConfig", "TranscodeConfig"]

Engine = Literal["processes", "ray"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TranscodeConfig:
    """How clips are cut and written."""

    transcode: Literal["train", "copy"] = "train"
    """train: small H.264 made for random access; copy: the video stream as it is, cut at its key frames. Audio
    becomes 16 kHz mono FLAC either way."""
    clip_seconds: float = 10.0
    """Length of a clip; 0 = each file is one clip."""
    min_seconds: float = 1.0
    """A file's last clip is dropped if it is shorter (unless it is the only one)."""
    fps: float = 8.0
    """Frames a second of transcoded clips; slower sources keep their rate."""
    short_side: int = 256
    """Pixels of the shorter side of transcoded clips; smaller sources, and all with 0, keep their size."""
    gop: int = 4
    """Frames from one key frame to the next: fewer = faster random access, larger files."""
    crf: int = 23
    """x264's constant rate factor: lower = better and larger."""
    need: Need = "auto"
    """What a clip must have: both; audio; video; any; auto = what the file's type promises (audio files: audio, else
    both), or what the source says."""

    def __post_init__(self) -> None:
        positive = {"fps": self.fps, "gop": self.gop}
        for name, value in positive.items():
            if value <= 0:
                raise UsageError(f"{name} must be positive, got {value}")
        for name in ("clip_seconds", "min_seconds", "short_side"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.crf <= 51:
            raise UsageError(f"crf must lie in 0..51, got {self.crf}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig:
    """How a source becomes shards."""

    source: SourceName = "folder"
    """Layout of the source folder."""
    table: Path | None = None
    """CSV, JSON lines or Parquet of labels or segments, where it does not lie where the source expects it."""
    multi_label: tuple[str, ...] = ()
    """Labels (columns) whose text holds several classes."""
    separator: str = ";"
    """What stands between the classes of a --multi-label text."""
    name: str = ""
    """Of the data set; empty = that of OUT."""
    clips: TranscodeConfig = field(default_factory=TranscodeConfig)
    limits: Limits = field(default_factory=Limits)
    shard_mb: int = 256
    """Largest shard, in millions of bytes."""
    shard_clips: int = 0
    """Most clips in a shard; 0 = any number."""
    workers: int = 0
    """Processes; 0 = one a core."""
    timeout: float = 300.0
    """Seconds without a finished clip after which work on a file is given up."""
    unlisted: Literal["refuse", "keep", "drop"] = "refuse"
    """What becomes of the clips of files that the list does not name any more: refuse the run, keep them as they are,
    or drop them."""
    retry: bool = False
    """Try files again that were skipped before."""
    engine: Engine = "processes"
    """processes: this machine; ray: a Ray cluster (needs avpretrain[ray], and OUT on storage that all nodes share)."""

    def __post_init__(self) -> None:
        for name in ("shard_mb", "timeout"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("workers", "shard_clips"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.separator:
            raise UsageError("separator must not be empty")
