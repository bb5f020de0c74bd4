"""Fixtures that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 synthetic clips of 2 s at 64 x 64 pixels and 8 fps, with labels.csv: two of each class."""
    from avpretrain.data.scenes.scene import SceneSettings
    from avpretrain.data.synthetic import make_scenes

    out = tmp_path_factory.mktemp("scenes")
    make_scenes(out, 24, SceneSettings(seconds=2.0, size=64, fps=8))
    return out
