"""Archives to folders: regular files inside the folder alone, in place only when all of them are there."""

from __future__ import annotations

import errno
import gzip
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from avpretrain.core.errors import UserError
from avpretrain.data.fetch.http import LostError
from avpretrain.data.sources.base import inside

LARGEST_RATIO = 100
"""Bytes that a byte of an archive may unpack to; recordings and tables stay far below."""
LARGEST_SMALL = 1_000_000_000
"""Bytes that any archive may unpack to, however small it is."""

_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError,
    RuntimeError, ValueError, struct.error,
)  # fmt: skip
_NAME_ERRORS = {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip or tar file; a single folder that holds all the rest is left out.

    Links and what would lie outside of the folder are not written.

    Raises:
        LostError: it is damaged, has names that no folder can hold, or unpacks to far more than recordings do; it was
            removed, so that it is downloaded again.
        UserError: there is no room, or something in the folder is in the way; the archive stays.
    """
    work = archive.with_name(f"{archive.name}.unpacked")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _unpack(archive, work)
        inner = list(work.iterdir())
        _move(inner[0] if len(inner) == 1 and inner[0].is_dir() else work, folder)
    except LostError:
        archive.unlink()
        raise
    except OSError as error:
        where = error.filename2 or error.filename or folder  # of a move, what is in the way
        raise UserError(f"{where} can't be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(archive: Path, work: Path) -> None:
    """Writes what an archive holds into a new folder.

    Raises:
        LostError: it is damaged, or holds what no folder can.
        OSError: it can't be written.
    """
    work.mkdir(parents=True)
    place: str | None = None
    left = most = max(LARGEST_RATIO * archive.stat().st_size, LARGEST_SMALL)
    try:
        for name, file in _members(archive):
            place = inside(name)
            if place is None or place.startswith("__MACOSX/"):
                continue
            (work / place).parent.mkdir(parents=True, exist_ok=True)
            with (work / place).open("wb") as out:
                while block := file.read(1 << 20):
                    left -= len(block)
                    if left < 0:
                        raise LostError(f"the archive unpacks to more than {most} bytes")
                    out.write(block)
    except _DAMAGE as error:
        raise LostError(f"the archive is damaged ({error})") from None
    except OSError as error:
        if error.errno not in _NAME_ERRORS:
            raise
        raise LostError(f"the archive has a name that can't be written ({error.strerror}): {place}"[:300]) from None


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    with zipped.open(info) as file:
                        yield info.filename, file
        return
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content


def _move(source: Path, target: Path) -> None:
    """Moves what a folder holds into another, where files of the same name are replaced."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        if entry.is_dir():
            _move(entry, target / entry.name)
        else:
            entry.replace(target / entry.name)
