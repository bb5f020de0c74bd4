"""One file by HTTP: resumed where it broke off, checked, in its place only when it is whole."""

from __future__ import annotations

import email.message
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from avpretrain.core.errors import UsageError, UserError

ATTEMPTS = 5
"""Connections in a row that may bring nothing."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, whatever a server asks for."""
TIMEOUT = 60.0
"""Seconds without a byte."""
BLOCK = 1 << 20
LARGEST = 64 << 30
"""Bytes that are taken of a file whose size its owner does not state."""
ALGORITHMS = ("md5", "sha256")
"""Of checksums."""


class LostError(Exception):
    """A file or clip that could not be had; the message says why."""

    final = False
    """Whether the owner says that it does not exist, so that another attempt is of no use."""


class GoneError(LostError):
    """It does not exist any more."""

    final = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A file on a server, and what its owner states about it."""

    name: str
    url: str
    size: int | None = None
    """Bytes."""
    checksum: str = ""
    """ALGORITHM:HEX, such as sha256:0123..."""
    most: int = LARGEST
    """Bytes that are taken where no size is stated."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 0:
            raise ValueError(f"a size of {self.size} bytes")
        if self.checksum and self.checksum.partition(":")[0] not in ALGORITHMS:
            raise ValueError(f"a checksum must be {' or '.join(ALGORITHMS)}, not {self.checksum[:20]!r}")


def check_url(url: str) -> None:
    """Raises a UsageError unless it is an address of HTTP."""
    if not re.match(r"https?://[^/\s]+", url):
        raise UsageError(f"{url[:200]} is no address; give one that begins with http:// or https://")


def fetch(remote: Remote, folder: Path, wait: float = 1.0, on_bytes: Callable[[int], None] | None = None) -> Path:
    """Downloads a file into a folder; one that is there is taken as it is.

    What broke off is resumed by range, in this call and in a later one, unless the server says that the file changed.

    Args:
        wait: seconds before the second attempt, doubled for each further one.
        on_bytes: called with the size of each piece that arrived.

    Raises:
        GoneError: the server has no such file.
        LostError: it can't be had now, or is not what its owner states.
        UserError: it can't be written.
    """
    check_url(remote.url)
    target, part = folder / remote.name, folder / f"{remote.name}.part"
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                _complete(remote, part, wait, on_bytes)
                problem = _wrong(remote, part)
            except _TooLongError as error:
                problem = str(error)
            if not problem:
                part.replace(target)
                _validator(part).unlink(missing_ok=True)
                return target
            for path in (part, _validator(part)):  # from the beginning: a resumed file may be of two versions
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{part} can't be written: {error.strerror or error}") from None
    raise LostError(problem)


def _complete(remote: Remote, part: Path, wait: float, on_bytes: Callable[[int], None] | None) -> None:
    """Brings `part` to its end."""
    failures = 0
    while True:
        before, pause = _size(part), wait * 2**failures
        try:
            if _go_on(remote, part, on_bytes):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code in (404, 410):
                raise GoneError(reason) from None
            if error.code == 416:
                part.unlink(missing_ok=True)
            elif error.code != 429 and error.code < 500:
                raise LostError(reason) from None
            pause = max(pause, _seconds(error.headers.get("Retry-After", "")))
        except _ConnectionFailedError as error:
            reason = str(error)
        failures = 0 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS:
            raise LostError(reason)
        time.sleep(min(pause, LONGEST_WAIT))


class _ConnectionFailedError(Exception):
    """The network failed, not the disk."""


class _TooLongError(Exception):
    """A server sends more than the file can have."""


def _go_on(remote: Remote, part: Path, on_bytes: Callable[[int], None] | None) -> bool:
    """Appends what a connection brings to `part`; whether that was all."""
    start, validator = _size(part), _validator(part)
    request = urllib.request.Request(remote.url, headers={"User-Agent": "avpretrain", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if validator.is_file():
            request.add_header("If-Range", validator.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _ConnectionFailedError(_reason(error)) from None
    with response:
        resumed = start > 0 and response.status == 206
        if resumed and _first(response.headers) != start:
            part.unlink()  # the next attempt asks for all of it
            raise _ConnectionFailedError("the server answers with another range than it was asked for")
        if not resumed:
            start = 0
            _keep_validator(response.headers, validator)
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        size = start
        _check_length(remote, total or 0)
        with part.open("ab" if resumed else "wb") as file:
            while True:
                try:
                    block = response.read1(BLOCK)  # what has arrived: `read` would lose it at a timeout
                except (OSError, http.client.HTTPException) as error:
                    raise _ConnectionFailedError(_reason(error)) from None
                if not block:
                    break
                size += len(block)
                _check_length(remote, size)
                file.write(block)
                if on_bytes is not None:
                    on_bytes(len(block))
    return total is None or _size(part) == total


def _check_length(remote: Remote, size: int) -> None:
    """Raises a _TooLongError if a file can't have so many bytes."""
    if remote.size is None and size > remote.most:
        raise _TooLongError(f"it has more than {remote.most} bytes, the most that is taken")
    if remote.size is not None and size > remote.size:
        raise _TooLongError(f"it has more bytes than its owner states, {remote.size}")


def _validator(part: Path) -> Path:
    """Where the version of a file that is being downloaded is kept, as the server names it."""
    return part.with_name(f"{part.name}.version")


def _keep_validator(headers: email.message.Message, path: Path) -> None:
    etag = headers.get("ETag", "")
    value = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    if value:
        path.write_text(value)
    else:
        path.unlink(missing_ok=True)


def _first(headers: email.message.Message) -> int | None:
    """First byte of a partial answer; none = it does not say."""
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _wrong(remote: Remote, path: Path) -> str:
    """In what a file differs from what its owner states; empty = in nothing."""
    if remote.size is not None and _size(path) != remote.size:
        return f"it has {_size(path)} bytes, its owner states {remote.size}"
    if remote.checksum:
        kind, _, wanted = remote.checksum.partition(":")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, kind).hexdigest()
        if digest != wanted.lower():
            return f"its {kind} is {digest}, its owner states {wanted.lower()}"
    return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() else 0.0


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", error)
    text = " ".join(str(getattr(inner, "strerror", None) or inner).split())[:200]
    return text or type(error).__name__
