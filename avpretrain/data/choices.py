"""What can be chosen of source files. Nothing here decodes, so that help and wrong arguments come at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SourceName = Literal[
    "folder", "huggingface", "audioset", "vggsound", "esc50", "esc10", "speechcommands", "fsdd", "grid",
    "folder_speech", "grid_speech",
]  # fmt: skip
Need = Literal["auto", "both", "audio", "video", "any"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one source file may ask for; protects from decompression bombs."""

    max_hours: float = 2.0
    """Longest file."""
    max_megapixels: float = 40.0
    """Largest frame, in millions of pixels (8K = 33)."""
    max_streams: int = 64
    """Most streams in a file."""
