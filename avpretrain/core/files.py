"""Reading ordinary files only, and writing that never leaves half a file: a temporary name first, then a rename."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import mmap
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avpretrain.core.errors import UserError

MAX_TEXT_BYTES = 64 << 20
"""Largest JSON, YAML or text file that is read whole."""
MAX_LOG_BYTES = 1 << 30
"""Largest log (metrics.jsonl) that is read."""
MAX_JSON_VALUES = 4_000_000
"""Most values in a JSON file: each may take a hundred bytes of memory."""


class NotAFileError(OSError):
    """A device, a pipe, a folder or a file that the kernel makes up stands where an ordinary file should."""

    def __init__(self, path: str | Path, kind: str) -> None:
        super().__init__(errno.EINVAL, f"is {kind}, not an ordinary file", str(path))


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_descriptor(path: str | Path) -> int:
    """A descriptor of an ordinary file, open for reading; never waits for a pipe's writer.

    Raises:
        NotAFileError: it is anything else, or lies in /proc or /sys.
        OSError: it can't be opened.
    """
    # O_NOCTTY: a terminal must not become ours.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFileError(path, next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), "a device"))
        if status.st_dev in _kernel_devices():
            raise NotAFileError(path, "a kernel interface")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_file(path: Path, advice: str) -> mmap.mmap:
    """An ordinary file's bytes, mapped for reading.

    Args:
        advice: what to do where the file is missing.

    Raises:
        UserError: it is missing, empty or can't be read.
    """
    try:
        descriptor = open_descriptor(path)
        try:
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {advice}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from None


_KERNEL_FILESYSTEMS = frozenset(
    ("proc", "sysfs", "tracefs", "debugfs", "cgroup", "cgroup2", "securityfs", "configfs", "bpf", "pstore", "efivarfs")
)


@functools.cache
def _kernel_devices() -> frozenset[int]:
    """Device numbers of Linux's file systems whose files look ordinary, but are endless or block."""
    devices = set()
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        mount, _, source = line.partition(" - ")
        if source.split(" ")[0] in _KERNEL_FILESYSTEMS:
            major, minor = mount.split(" ")[2].split(":")
            devices.add(os.makedev(int(major), int(minor)))
    return frozenset(devices)


def open_file(path: str | Path) -> io.BufferedReader:
    """An ordinary file, open for reading; every file that a user names is opened by this.

    Raises:
        NotAFileError: it is a device, a pipe, a folder, or lies in /proc or /sys.
        OSError: it can't be opened.
    """
    return os.fdopen(open_descriptor(path), "rb")


def open_text(path: str | Path, encoding: str = "utf-8") -> io.TextIOWrapper:
    """An ordinary text file, open for reading, its line ends as they are, as `csv` wants them.

    Raises:
        NotAFileError, OSError: as `open_file`.
    """
    return io.TextIOWrapper(open_file(path), encoding=encoding, newline="")


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The bytes of an ordinary file.

    Raises:
        OSError: it can't be read, is no ordinary file, or is longer than `limit`.
    """
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit / 1e6:.0f} MB", str(path))
    return data


def read_text(path: Path, limit: int = MAX_TEXT_BYTES, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of an ordinary file, with line ends as they are read from text files.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: it is not in that encoding.
    """
    data = read_bytes(path, limit)
    return io.TextIOWrapper(io.BytesIO(data), encoding=encoding, errors=errors).read()


def parse_json(data: bytes | str) -> Any:
    """`json.loads` that holds against depth and number of values.

    Raises:
        ValueError: it is not JSON, or asks for too much; the message is one line.
    """
    text = data.decode() if isinstance(data, bytes) else data
    values = text.count(",") + text.count(":") + text.count("[") + text.count("{")
    if values > MAX_JSON_VALUES:
        raise ValueError(f"it holds {values} values, more than {MAX_JSON_VALUES}")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_zip(path: Path, limit: int) -> None:
    """Refuses an archive whose members claim more than `limit` bytes in all; other files pass.

    Raises:
        ValueError: it does, or its directory is damaged.
    """
    with open_file(path) as file:
        if not zipfile.is_zipfile(file):
            return
        try:
            with zipfile.ZipFile(file) as archive:
                claimed = sum(info.file_size for info in archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            raise ValueError(f"its archive is damaged: {error}") from None
    if claimed > limit:
        raise ValueError(f"its members claim {claimed / 1e6:.0f} MB, more than {limit / 1e6:.0f} MB")


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
        with open_file(path) as file:
            return file.read(size)
    except OSError:
        return b"?"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, which takes its place when the block succeeds and vanishes when it fails.

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


def read_json(path: Path, what: str, limit: int = MAX_TEXT_BYTES) -> Any:
    """Reads JSON of at most `limit` bytes; `what` names the file's role in the error.

    Raises:
        UserError: the file is missing, is no ordinary file, is too large, or is not JSON.
    """
    try:
        return parse_json(read_bytes(path, limit))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no {what} at {path}; name the file that holds one") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are of it
        if mistake := mistaken_for(read_head(path)):
            raise UserError(f"{what} {path} {mistake}") from None
        raise UserError(f"{what} {path} is not valid JSON: {error}; name another file, or write it anew") from None
    except OSError as error:
        if path.is_dir():
            raise UserError(f"{path} is a folder; name the file of the {what}") from None
        raise UserError(f"{what} {path} can't be read: {error.strerror}") from None
