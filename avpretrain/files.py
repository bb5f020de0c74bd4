"""Writing that never leaves half a file: a temporary name first, then a rename."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avpretrain.errors import UserError


def mistaken_for(head: bytes) -> str | None:
    """What a file that should hold media or weights holds in their place, by its first bytes; none = nothing known."""
    start = head[:200].lstrip().lower()
    if not head:
        return "is empty: the copy or the download was cut off before it began"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: fetch it with git lfs pull"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page: the download got a web page, such as a login or an error, in place of the file"
    return None


def read_head(path: Path, size: int = 512) -> bytes:
    """The first bytes of a regular file; none where it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(size) if path.is_file() else b"?"
    except OSError:
        return b"?"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block succeeds and vanishes when it fails.

    The block may write a file or make a directory there; an existing file or directory at `path` is replaced, but
    never a directory by a file.

    Raises:
        UserError: a file was to be written where a directory stands, or below something that is no directory.
    """
    with contextlib.suppress(FileExistsError, NotADirectoryError):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.is_dir():
        raise UserError(f"can't write {path}: {path.parent} is no folder")
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary = holder / path.name
    try:
        yield temporary
        if path.is_dir() and not temporary.is_dir():
            raise UserError(f"{path} is a folder; name a file to write")
        if path.exists() and not path.is_dir() and temporary.is_dir():
            raise UserError(f"{path} is a file; name a folder to write")
        if path.is_dir():
            path.rename(holder / "replaced")
        temporary.replace(path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


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
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no {what} at {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the file of the {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        if found := mistaken_for(read_head(path)):
            raise UserError(f"{what} {path} {found}") from None
        raise UserError(f"{what} {path} is not valid JSON: {error}") from None
