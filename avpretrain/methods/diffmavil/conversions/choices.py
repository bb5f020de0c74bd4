"""What can be chosen of an import. Nothing here imports torch, so that help and wrong arguments come at once."""

from __future__ import annotations

from typing import Literal

Format = Literal["mae", "audiomae", "cav-mae", "mavil", "timm", "videomae", "dinov2", "dasheng", "openelm"]
Into = Literal["audio", "video", "both"]
