"""Files that several tests of data cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.media_files import write_media


@pytest.fixture(scope="session")
def opus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s, one Opus packet every 20 ms."""
    return write_media(tmp_path_factory.mktemp("opus") / "a.mkv", 20.0, audio="libopus", rate=48_000, gop=20)


@pytest.fixture(scope="session")
def aac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s of H.264 and AAC in mp4, a key frame every 5 s, with B-frames."""
    return write_media(tmp_path_factory.mktemp("aac") / "a.mp4", 20.0, gop=50, bframes=2)
