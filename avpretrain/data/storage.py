"""Bytes of shards by name, offset and length: from a local folder, or from any store that fsspec knows (S3, GCS, HTTP).

Stores open their files lazily and are cheap to pickle, so each loader process opens its own.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from avpretrain.data.manifest import DATASET_NAME, MANIFEST_NAME, is_shard_name
from avpretrain.errors import UserError
from avpretrain.files import atomic_path, open_descriptor

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE = 0.1
"""Seconds before the second attempt; doubled before each further one, so that six attempts span three seconds."""
OPEN_FILES = 64


class StorageError(Exception):
    """Bytes that should be there could not be read; the message names the file and the reason."""


@runtime_checkable
class Store(Protocol):
    """Where the files of one data set lie."""

    root: str

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of a file.

        Raises:
            StorageError: it is missing, shorter than that, or out of reach.
        """

    def forget(self, name: str, offset: int) -> bool:
        """Drops what a local cache holds at that place; whether there was anything."""

    def manifest_folder(self) -> Path:
        """Local folder that holds the data set's `manifest.arrow` and `dataset.json`."""


def open_store(root: str, cache_dir: str = "") -> Store:
    """The store behind a folder or URL; `cache_dir` keeps what is read from remote ones (empty: manifests only)."""
    if root.startswith("file://"):
        root = root.removeprefix("file://")
    return RemoteStore(root, cache_dir) if "://" in root else LocalStore(root)


class LocalStore:
    """A folder, read by `pread` on files that stay open (the last 64 of them)."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._files: OrderedDict[str, int] = OrderedDict()

    def __reduce__(self) -> tuple[type[LocalStore], tuple[str]]:
        return LocalStore, (self.root,)

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def read(self, name: str, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor(name), length, offset)
        except (OSError, OverflowError, MemoryError) as error:  # the last two: a damaged manifest asks for too much
            reason = getattr(error, "strerror", None) or f"can't read {length} bytes at {offset}"
            raise StorageError(f"{Path(self.root, name)}: {reason}") from None
        return _whole(data, length, f"{Path(self.root, name)}")

    def _descriptor(self, name: str) -> int:
        if name not in self._files:
            self._files[name] = open_descriptor(Path(self.root, _plain(name)))
            if len(self._files) > OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(name)
        return self._files[name]

    def forget(self, name: str, offset: int) -> bool:
        return False

    def manifest_folder(self) -> Path:
        return Path(self.root)


class RemoteStore:
    """A URL, read by ranges; an attempt that fails (a cut connection, a busy server) is repeated after a pause."""

    def __init__(self, root: str, cache_dir: str = "") -> None:
        self.root = root.rstrip("/")
        self.cache_dir = cache_dir
        self._filesystem: Any = None
        self._base = ""

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str, str]]:
        return RemoteStore, (self.root, self.cache_dir)

    def read(self, name: str, offset: int, length: int) -> bytes:
        cached = self._cached(name, offset)
        if cached is not None and cached.is_file() and cached.stat().st_size == length:
            return cached.read_bytes()
        data = self._retry(name, lambda fs, path: _whole(fs.cat_file(path, offset, offset + length), length, path))
        if cached is not None:
            with atomic_path(cached) as temporary:
                temporary.write_bytes(data)
        return data

    def forget(self, name: str, offset: int) -> bool:
        cached = self._cached(name, offset)
        if cached is None or not cached.exists():
            return False
        cached.unlink(missing_ok=True)
        return True

    def manifest_folder(self) -> Path:
        """Fetches the summary, and the table unless a copy of this very version is there."""
        try:
            summary: bytes = self._retry(DATASET_NAME, lambda fs, path: fs.cat_file(path))
            folder = self._folder() / "manifest" / hashlib.sha256(summary).hexdigest()[:16]
            for name in (MANIFEST_NAME, DATASET_NAME):
                if not (folder / name).exists():
                    self._download(name, folder / name)
        except StorageError as error:
            raise UserError(f"no data set can be read at {self.root}: {error}") from None
        return folder

    def _download(self, name: str, target: Path) -> None:
        with atomic_path(target) as temporary:
            self._retry(name, lambda fs, path: fs.get_file(path, str(temporary)))

    def _folder(self) -> Path:
        base = Path(self.cache_dir) if self.cache_dir else Path.home() / ".cache" / "avpretrain"
        return base.expanduser() / hashlib.sha256(self.root.encode()).hexdigest()[:16]

    def _cached(self, name: str, offset: int) -> Path | None:
        return self._folder() / _plain(name) / str(offset) if self.cache_dir else None

    def _retry(self, name: str, work: Callable[[Any, str], T]) -> T:
        """`work(filesystem, path)`, up to `ATTEMPTS` times."""
        filesystem = self._open()
        path = f"{self._base}/{name}"
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return work(filesystem, path)
            except (FileNotFoundError, PermissionError) as error:
                raise StorageError(f"{path}: {type(error).__name__}") from None
            except Exception as error:  # every protocol has its own, and most of them pass
                if attempt == ATTEMPTS:
                    raise StorageError(f"{path}: {ATTEMPTS} attempts failed, the last by {error!r}") from None
            time.sleep(pause)
            pause *= 2
        raise AssertionError

    def _open(self) -> Any:
        if self._filesystem is None:
            import fsspec

            try:
                self._filesystem, self._base = fsspec.core.url_to_fs(self.root)
            except ImportError as error:
                raise UserError(f"reading {self.root} needs a package that is not installed: {error}") from None
            except ValueError as error:
                raise UserError(f"{self.root} is no URL that can be read: {error}") from None
        return self._filesystem


def _plain(name: str) -> str:
    """A shard's name; the manifest was checked, but what becomes a path is checked where it does."""
    if not is_shard_name(name):
        raise StorageError(f"{name!r} is no name of a shard")
    return name


def _whole(data: bytes, length: int, path: str) -> bytes:
    if len(data) < length:
        raise StorageError(f"{path} is cut short: {length - len(data)} bytes are missing")
    if len(data) > length:
        raise StorageError(f"{path}: the server sends whole files where a range was asked; copy the shards to a disk")
    return data
