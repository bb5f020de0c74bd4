"""The data set and the run that trainings are compared with; tests write to neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_runs import tiny_config, tiny_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty clips in five shards."""
    return tiny_data(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="session")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run on one rank."""
    from avpretrain.api import train

    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert train(tiny_config(data, folder)).finished
    return folder
