"""How face tracks are made. Nothing here decodes, so that help and wrong arguments come at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avpretrain.core.errors import UsageError
from avpretrain.methods.speaker.config import MARGIN

SourceKind = Literal["auto", "ava", "grid", "synthetic"]
Symmetry = Literal["reversible", "onset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TracksConfig:
    """How face tracks are made."""

    source: SourceKind = "auto"
    """ava: videos and tables as of AVA-ActiveSpeaker. grid: the same with a metadata.csv of files and splits.
    synthetic: talking heads; SRC is the word synthetic. auto = what SRC holds."""
    table: tuple[Path, ...] = ()
    """ava, grid: tables of boxes and labels, or folders of them, where they do not lie in SRC."""
    face_size: int = 64
    """Pixels of the side of a face crop."""
    margin: float = MARGIN
    """Share of the longer side of a face's box that is added at each side before it is cut out."""
    max_gap: float = 1.0
    """Seconds without a box after which a track ends and another begins; shorter gaps have no label."""
    min_frames: int = 5
    """Shorter tracks are left out."""
    hard_negatives: float | None = None
    """Mixtures of each kind for each track: with another track's audio, with its own out of time, and with both its own
    and another's. 0 = none. Not given: 1 for grid, 0 for others. Audio comes from the same split."""
    scenes: int = 400
    """synthetic: number of scenes."""
    seconds: float = 4.0
    """synthetic: length of a scene."""
    max_faces: int = 3
    """synthetic: most faces of a scene; each is a track."""
    symmetry: Symmetry = "reversible"
    """synthetic: whether a scene played backwards is as likely. onset: it isn't, since mouths are covered a little
    after they begin to move, so that what came before must be remembered."""
    time_reversed: bool = False
    """synthetic: play every scene backwards."""
    as_videos: bool = False
    """synthetic: write scenes as videos and a table in OUT, as AVA has them, in place of tracks. Stopped, this
    starts anew."""
    val_share: float = 0.1
    """synthetic: share of scenes in split val."""
    test_share: float = 0.1
    """synthetic: share of scenes in split test."""
    seed: int = 0
    """Of all that is drawn."""
    workers: int = 0
    """Processes; 0 = one a CPU core."""

    def __post_init__(self) -> None:
        ranges = {
            "face_size": (8, 1024), "margin": (0, 2), "max_gap": (0, 60), "min_frames": (1, 10_000),
            "scenes": (1, 10**7), "seconds": (1, 60), "max_faces": (1, 8), "seed": (0, 2**62), "workers": (0, 1024),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} must lie in [{low}, {high}], got {getattr(self, name)}")
        if self.hard_negatives is not None and not 0 <= self.hard_negatives <= 100:
            raise UsageError(f"hard_negatives must lie in [0, 100], got {self.hard_negatives}")
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share >= 1:
            raise UsageError("val_share and test_share must not be negative and must leave something to train on")
        if self.as_videos and self.source not in ("auto", "synthetic"):
            raise UsageError(f"as_videos goes with source synthetic, not {self.source}")

    @property
    def processes(self) -> int:
        """Worker processes."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.workers or cores
