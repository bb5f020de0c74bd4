"""Recordings of others, which this repository can't hold: tests that need them say so where they are not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("AVPRETRAIN_REAL_DATA", ""))
needs_real_data = pytest.mark.skipif(
    "AVPRETRAIN_REAL_DATA" not in os.environ,
    reason="needs recordings of others, which are not in this repository: set AVPRETRAIN_REAL_DATA to a folder with "
    "the packs av_misc, esc10, fsdd, grid_av and speechcommands3",
)
