"""Runs that tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import write_run


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """A finished MAViL run and a finished DiffMAViL run."""
    return [
        write_run(tmp_path / "mavil", "tiny_mavil", name="mavil", accuracy=0.80),
        write_run(tmp_path / "diffmavil", "tiny_diffmavil", name="diffmavil", accuracy=0.82),
    ]
