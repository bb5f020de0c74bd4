"""Bytes of shards by name, offset and length: from a local folder, or from any store that fsspec knows (S3, GCS, HTTP).

Stores open their files lazily and are cheap to pickle, so each loader process opens its own.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from avpretrain.core.errors import PROGRAM_ERRORS, UserError
from avpretrain.core.files import MAX_TEXT_BYTES, atomic_path, open_descriptor, parse_json, read_bytes
from avpretrain.core.locks import turns
from avpretrain.core.terminal import plain
from avpretrain.data.manifest import is_shard_name
from avpretrain.data.place import DATASET_NAME, MANIFEST_NAME

T = TypeVar("T")

REQUEST_TIMEOUT = 5.0
"""Seconds that a server may be silent before a request is repeated, unless told otherwise."""
GIVE_UP = 2.0
"""Of those times without success a server counts as gone."""
LONGEST = 12.0
"""Of those times one request may take in all, though bytes trickle in; of a manifest, before `MIN_RATE` counts."""
MIN_RATE = 10_000
"""Bytes a second below which a manifest, which may be of any size, is not arriving."""
MAX_CLIP_BYTES, MAX_TABLE_BYTES = 1 << 16, 16 << 20
"""A manifest takes at most the first for each clip that its summary counts, and the second besides."""
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
"""Seconds before the second attempt; doubled before each further one, up to the last."""
NOT_THERE, CUT_SHORT, BUSY = {404, 410}, 416, {408, 425, 429}
"""Answers of a web server: of one file; of one range; those below 500 that may pass."""
WORD = 3.0
"""Seconds of waiting for a manifest before a line says so."""
OPEN_FILES = 64


class StorageError(Exception):
    """Bytes that should be there could not be read; the message names the file and the reason."""


class UnreachableError(UserError):
    """A remote store does not answer, or refuses to; no fault of a single clip, so a run ends at once."""


class Waiting:
    """Says once, on stderr of the first rank, that something is waited for; a context manager around each wait.

    Args:
        what: URLs, for people; empty = says nothing.
        after: seconds.
    """

    def __init__(self, what: str, after: float) -> None:
        self.what, self.after = what, after
        self._timer: threading.Timer | None = None
        if os.environ.get("RANK", "0") != "0":
            self.what = ""

    def __enter__(self) -> None:
        if self.what:
            self._timer = threading.Timer(self.after, self._say)
            self._timer.daemon = True
            self._timer.start()

    def _say(self) -> None:
        if self.what:
            print(plain(f"avpretrain: waiting for {self.what} ..."), file=sys.stderr, flush=True)
            self.what = ""

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@runtime_checkable
class Store(Protocol):
    """Where the files of one data set lie."""

    root: str

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of a file.

        Raises:
            StorageError: it is missing or shorter than that.
            UnreachableError: the whole store is out of reach.
        """

    def forget(self, name: str, offset: int) -> bool:
        """Drops what a local cache holds at that place; whether there was anything."""

    def manifest_folder(self) -> Path:
        """Local folder that holds the data set's `manifest.arrow` and `dataset.json`."""


def open_store(root: str, cache_dir: str = "", request_timeout: float = REQUEST_TIMEOUT) -> Store:
    """The store behind a folder or URL; `cache_dir` keeps what is read from remote ones (empty: manifests only)."""
    if root.startswith("file://"):
        root = root.removeprefix("file://")
    return RemoteStore(root, cache_dir, request_timeout) if "://" in root else LocalStore(root)


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
    """A URL, read by ranges; an attempt that fails (a cut connection, a busy server) is repeated after a pause.

    Args:
        cache_dir: keeps what was read; empty = manifests only.
        request_timeout: seconds without a byte after which a request is repeated; after `GIVE_UP` times as long without
            success the store counts as gone.
    """

    def __init__(self, root: str, cache_dir: str = "", request_timeout: float = REQUEST_TIMEOUT) -> None:
        self.root = root.rstrip("/")
        self.cache_dir, self.request_timeout = cache_dir, request_timeout
        self._filesystem: Any = None
        self._base = ""
        self._gone: tuple[float, str] | None = None

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str, str, float]]:
        return RemoteStore, (self.root, self.cache_dir, self.request_timeout)

    def read(self, name: str, offset: int, length: int) -> bytes:
        cached = self._cached(name, offset)
        if cached is not None and cached.is_file() and cached.stat().st_size == length:
            return cached.read_bytes()
        data = self._retry(name, lambda fs, path: self._range(fs, path, offset, length))
        if cached is not None:
            self._keep(cached, data)
        return data

    def _range(self, filesystem: Any, path: str, offset: int, length: int) -> bytes:
        limit = LONGEST * self.request_timeout
        if getattr(filesystem, "async_impl", False):
            data: bytes = filesystem.cat_file(path, offset, offset + length, timeout=limit)
        else:
            data = _within(limit, lambda: filesystem.cat_file(path, offset, offset + length))
        if len(data) > length:
            raise UnreachableError(
                f"{path}: the server sends whole files where a range was asked; copy the shards to a disk"
            )
        return _whole(data, length, path)

    def _keep(self, cached: Path, data: bytes) -> None:
        try:
            with atomic_path(cached) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise UserError(
                f"can't keep clips in {self.cache_dir}: {error.strerror or error}; free some space, or give another "
                "--data.cache-dir or none"
            ) from None

    def forget(self, name: str, offset: int) -> bool:
        cached = self._cached(name, offset)
        if cached is None or not cached.exists():
            return False
        cached.unlink(missing_ok=True)
        return True

    def manifest_folder(self) -> Path:
        """Fetches the summary, and the table unless a copy of this very version is there."""
        try:
            with Waiting(self.root, WORD):
                return self._fetch_manifest()
        except (StorageError, UnreachableError) as error:
            raise UserError(f"no data set can be read at {self.root}: {error}") from None

    def _fetch_manifest(self) -> Path:
        with tempfile.TemporaryDirectory() as temporary:
            fetched = Path(temporary, DATASET_NAME)
            self._download(DATASET_NAME, fetched, MAX_TEXT_BYTES)
            summary = read_bytes(fetched)
        folder = self._folder() / "manifest" / hashlib.sha256(summary).hexdigest()[:16]
        if not (folder / MANIFEST_NAME).exists():
            with turns(folder.with_name(f"{folder.name}.lock")):  # ranks of a machine begin at once; one downloads
                if not (folder / MANIFEST_NAME).exists():
                    with atomic_path(folder / MANIFEST_NAME) as table:
                        self._download(MANIFEST_NAME, table, MAX_TABLE_BYTES + MAX_CLIP_BYTES * _clips(summary))
        if not (folder / DATASET_NAME).exists():
            with atomic_path(folder / DATASET_NAME) as copy:
                copy.write_bytes(summary)
        return folder

    def _download(self, name: str, target: Path, most: int) -> None:
        limit = LONGEST * self.request_timeout
        self._retry(name, lambda fs, path: fs.get_file(path, str(target), callback=_arrival(path, limit, most)))

    def _folder(self) -> Path:
        base = Path(self.cache_dir) if self.cache_dir else Path.home() / ".cache" / "avpretrain"
        return base.expanduser() / hashlib.sha256(self.root.encode()).hexdigest()[:16]

    def _cached(self, name: str, offset: int) -> Path | None:
        return self._folder() / _plain(name) / str(offset) if self.cache_dir else None

    def _retry(self, name: str, work: Callable[[Any, str], T]) -> T:
        """`work(filesystem, path)`, again and again until it succeeds or the store counts as gone.

        Raises:
            StorageError: the file is missing, or shorter than it should be.
            UnreachableError: there was no answer for too long, or it was a refusal.
        """
        filesystem = self._open()
        path = f"{self._base}/{name}"
        patience = GIVE_UP * self.request_timeout
        started, pause, attempts = time.monotonic(), FIRST_PAUSE, 0
        if self._gone is not None and started < self._gone[0]:  # reads that were queued behind the one that gave up
            raise UnreachableError(self._gone[1])
        while True:
            attempts += 1
            try:
                return work(filesystem, path)
            except (StorageError, UserError, *PROGRAM_ERRORS):
                raise
            except Exception as error:  # every protocol has its own, and most of them pass
                _raise_what_stays(error, path)
                waited = time.monotonic() - started
                if waited + pause >= patience:
                    reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
                    message = (
                        f"{path} can't be read: {attempts} attempts in {waited:.0f} s failed, the last by {reason}; "
                        "start again when the server answers (data.request_timeout says how long it may be silent)"
                    )
                    self._gone = time.monotonic() + self.request_timeout, message
                    raise UnreachableError(message) from None
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    def _open(self) -> Any:
        if self._filesystem is None:
            import fsspec

            try:
                options = _time_limits(self.root.partition("://")[0], self.request_timeout)
                self._filesystem, self._base = fsspec.core.url_to_fs(self.root, **options)
            except ImportError as error:
                raise UserError(f"reading {self.root} needs a package that is not installed: {error}") from None
            except ValueError as error:
                raise UserError(f"{self.root} is no URL that can be read: {error}") from None
        return self._filesystem


def _time_limits(protocol: str, seconds: float) -> dict[str, Any]:
    """Options that make a file system break off a request which brings no byte for so long, on top of the user's own.

    Others than these have limits of their own.
    """
    from fsspec.config import conf

    given: dict[str, Any] = conf.get(protocol, {})
    if protocol in ("http", "https"):
        import aiohttp

        limit = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        return {"client_kwargs": {"timeout": limit, **given.get("client_kwargs", {})}}
    if protocol in ("s3", "s3a"):
        limits = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"max_attempts": 1}}
        return {"config_kwargs": {**limits, **given.get("config_kwargs", {})}}
    return {}


def _clips(summary: bytes) -> int:
    """Clips that a summary counts; none where it is damaged, which is said when it is opened."""
    try:
        clips = parse_json(summary)["clips"]
        return clips if type(clips) is int and 0 <= clips < 1 << 32 else 0
    except (ValueError, LookupError, TypeError):
        return 0


def _arrival(path: str, seconds: float, most: int) -> Any:
    """An fsspec callback that breaks a download off when it hardly arrives after so long, or lasts too long."""
    import fsspec

    started = time.monotonic()

    class Arrival(fsspec.Callback):
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            took = time.monotonic() - started
            if self.value > most:
                raise UnreachableError(f"{path}: the server sends more than {most / 1e6:.0f} MB; that is none of ours")
            if took > seconds and self.value < MIN_RATE * took:
                raise TimeoutError(f"{self.value} bytes in {took:.0f} s")

    return Arrival()


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns, if it does so in time; else it is left to itself, on a thread of its own.

    Raises:
        TimeoutError: it takes longer.
    """
    ended: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((True, work()))
        except BaseException as error:
            ended.put((False, error))

    threading.Thread(target=run, name="request", daemon=True).start()
    try:
        well, value = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no end after {seconds:g} s") from None
    if not well:
        raise value
    result: T = value
    return result


def _raise_what_stays(error: Exception, path: str) -> None:
    """Returns if another attempt may succeed where this one failed.

    Raises:
        StorageError: the file is missing, or ends before the range that was asked for.
        UnreachableError: the server refuses.
    """
    status = getattr(error, "status", None)
    status = status if isinstance(status, int) else 0
    if isinstance(error, FileNotFoundError) or status in NOT_THERE:
        raise StorageError(f"{path}: FileNotFoundError") from None
    if status == CUT_SHORT:
        raise StorageError(f"{path} is cut short: it ends before the clip") from None
    if isinstance(error, PermissionError) or (400 <= status < 500 and status not in BUSY):
        raise UnreachableError(f"{path}: the server refuses ({status or type(error).__name__}): {error}") from None


def _plain(name: str) -> str:
    """A shard's name; the manifest was checked, but what becomes a path is checked where it does."""
    if not is_shard_name(name):
        raise StorageError(f"{name!r} is no name of a shard")
    return name


def _whole(data: bytes, length: int, path: str) -> bytes:
    if len(data) < length:
        raise StorageError(f"{path} is cut short: {length - len(data)} bytes are missing")
    return data
