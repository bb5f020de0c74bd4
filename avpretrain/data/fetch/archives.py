"""Archives to folders: regular files inside the folder alone, in place only when all of them are there."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from avpretrain.core.errors import UserError
from avpretrain.data.fetch.http import LostError
from avpretrain.data.sources.base import inside

_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError,
    RuntimeError,
)  # fmt: skip


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip or tar file; a single folder that holds all the rest is left out.

    Links and what would lie outside of the folder are not written.

    Raises:
        LostError: it is damaged; it was removed, so that it is downloaded again.
        UserError: there is no room.
    """
    work = archive.with_name(f"{archive.name}.unpacked")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for name, file in _members(archive):
            place = inside(name)
            if place is None or place.startswith("__MACOSX/"):
                continue
            (work / place).parent.mkdir(parents=True, exist_ok=True)
            with (work / place).open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
    except _DAMAGE as error:
        shutil.rmtree(work, ignore_errors=True)
        archive.unlink()
        raise LostError(f"the archive is damaged ({error})") from None
    except OSError as error:
        raise UserError(f"{work} can't be written: {error.strerror or error}") from None
    inner = list(work.iterdir())
    _move(inner[0] if len(inner) == 1 and inner[0].is_dir() else work, folder)
    shutil.rmtree(work, ignore_errors=True)


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
