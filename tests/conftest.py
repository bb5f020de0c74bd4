"""Fixtures that several tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported, here and in all processes that tests start. The models are tiny, and threads of several test
# workers on the same few cores spend many times longer waiting for each other than computing.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that tests start import what another has compiled already.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, for what is made of plain folders of media and text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVPRETRAIN_CACHE", str(folder := tmp_path_factory.getbasetemp() / "cache"))
        yield folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 synthetic clips of 2 s at 64 x 64 pixels and 8 fps, with labels.csv: two of each class."""
    from avpretrain.data.scenes.make import make_scenes
    from avpretrain.data.scenes.scene import SceneSettings

    out = tmp_path_factory.mktemp("scenes")
    make_scenes(out, 24, SceneSettings(seconds=2.0, size=64, fps=8))
    return out
