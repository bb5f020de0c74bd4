"""The tests stand as the code does."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "avpretrain"
OWN = {"support", "compat"}
"""Helpers of tests, and files of earlier versions."""


def test_every_folder_of_tests_mirrors_a_room() -> None:
    folders = {path.relative_to(HERE).parent for path in HERE.rglob("test_*.py")} - {Path()}
    assert folders
    strangers = [str(f) for f in folders if f.parts[0] not in OWN and not (PACKAGE / f / "__init__.py").is_file()]
    assert strangers == []


def test_every_room_says_what_it_is_for() -> None:
    rooms = sorted(path for path in PACKAGE.rglob("__init__.py"))
    assert len(rooms) > 15
    assert [str(path) for path in rooms if not path.read_text().startswith('"""')] == []
