"""Writing that never leaves half a file: a temporary name first, then a rename."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avpretrain.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block succeeds and vanishes when it fails.

    The block may write a file or make a directory there; an existing file or directory at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary = holder / path.name
    try:
        yield temporary
        if path.is_dir() or (temporary.is_dir() and path.exists()):
            path.rename(holder / "replaced")
        temporary.replace(path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """What `atomic_path` leaves in a folder when the process is killed: nobody's but an unfinished writer's."""
    return sorted(path for path in folder.glob(".*.*.tmp") if path.is_dir()) if folder.is_dir() else []


def clear_leftovers(folder: Path) -> None:
    """Removes `leftovers`; nobody else may be writing there."""
    for path in leftovers(folder):
        shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Reads JSON; `what` names the file's role in the error.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from None
