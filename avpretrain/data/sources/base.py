"""What every source gives, and the few things most of them do: read tables, look for files, keep inside the folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from avpretrain.data.choices import Need
from avpretrain.data.media import AUDIO_EXTENSIONS, Segment
from avpretrain.data.names import escape_name
from avpretrain.data.sources.label_values import Label
from avpretrain.data.sources.tables import read_rows

__all__ = [
    "AUDIO_EXTENSIONS", "MEDIA_EXTENSIONS", "VIDEO_EXTENSIONS", "Item", "Labels", "Listing", "Scan", "inside",
    "is_file", "need_of", "read_rows", "scan", "walk",
]  # fmt: skip

VIDEO_EXTENSIONS = frozenset(
    {
        ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mpe", ".vob", ".ts", ".m2ts",
        ".mts", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".mxf", ".divx",
    }
)  # fmt: skip
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | AUDIO_EXTENSIONS

Labels = dict[str, Label]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One file, or one segment of a file, that belongs to a data set."""

    path: str
    """Relative to the source folder, with forward slashes, as the file system has it (it may be no UTF-8)."""
    labels: Labels = field(default_factory=dict)
    split: str = "train"
    license: str = ""
    segment: Segment | None = None
    need: Need = "auto"
    """What its clips must have; auto = what the file's extension promises."""


@dataclass(kw_only=True)
class Listing:
    """All items of a source, and what it lacks."""

    items: list[Item]
    missing: list[str] = field(default_factory=list)
    """What the set's table names and the folder has not."""
    ignored: int = 0
    """Files that are no media, or that the table does not name."""
    absent: list[Item] | None = None
    """The missing files as items, where the table says all of them: what neither it nor `items` holds is no part of the
    set any more. None = the source can't tell."""
    notes: list[str] = field(default_factory=list)
    """What someone might miss, a line each."""

    @property
    def present(self) -> float:
        """Share of the set that is there."""
        return len(self.items) / max(1, len(self.items) + len(self.missing))


def need_of(path: str) -> Need:
    """What a file's extension promises."""
    return "audio" if PurePosixPath(path).suffix.lower() in AUDIO_EXTENSIONS else "both"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """The files of a folder, linked folders included."""

    paths: list[str]
    """Relative to it, with forward slashes, sorted; hidden ones are left out."""
    notes: list[str]
    """What was left out that someone might miss, a line each."""


def scan(root: Path) -> Scan:
    """Looks through a folder and all below it, following links to folders, each folder once.

    A link to a folder that is reached already, or that holds the link itself, is not followed again.
    """
    seen = {_identity(path) for path in (root, *root.resolve().parents)}
    files: list[str] = []
    links: list[str] = []
    again: list[str] = []
    broken: list[str] = []
    unreadable: list[str] = []
    folders, linked = [""], False
    while folders:
        here = folders.pop()
        for name, entry in _entries(root, here, unreadable):
            if _is_folder(entry):
                if entry.is_symlink():
                    links.append(name)
                elif not _reached(entry.path, seen) or not linked:  # without links no folder is met twice
                    folders.append(name)
                else:
                    again.append(name)
            elif _is_file(root / name):
                files.append(name)
            elif entry.is_symlink():
                broken.append(name)
        links.sort(key=_parts)
        while links and not folders:  # links last: a folder that is reached both ways goes by its own name
            link, linked = links.pop(0), True
            (again if _reached(root / link, seen) else folders).append(link)
    counts = (
        (again, "linked folders lead to folders that are reached already, and are not followed again"),
        (broken, "links lead nowhere"),
        (unreadable, "folders can't be read"),
    )
    notes = [f"{len(names)} {what}, e.g. {escape_name(min(names))}" for names, what in counts if names]
    return Scan(paths=sorted(files, key=_parts), notes=notes)


def walk(root: Path) -> list[str]:
    """Relative paths of all files that are not hidden, those in linked folders included, sorted."""
    return scan(root).paths


def _entries(root: Path, folder: str, unreadable: list[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What lies in a folder and is not hidden, with its path relative to `root`."""
    try:
        entries = list(os.scandir(root / folder))
    except OSError:
        unreadable.append(folder)
        return
    for entry in entries:
        if not entry.name.startswith("."):
            yield (f"{folder}/{entry.name}" if folder else entry.name), entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _reached(folder: str | Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder was reached before; notes that it is now. One that has gone counts as reached."""
    try:
        identity = _identity(folder)
    except OSError:
        return True
    before = identity in seen
    seen.add(identity)
    return before


def _identity(path: str | Path) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def _parts(path: str) -> list[str]:
    return path.split("/")


def inside(name: str) -> str | None:
    """A table's path made plain; none if it is absolute or leads out of the folder."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return None
    return path.as_posix()


def is_file(root: Path, name: str) -> str | None:
    """The path by which a table's file is there: as it is spelt, or with its accents composed or decomposed."""
    for spelt in dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))):
        if _is_file(root / spelt):
            return spelt
    return None


def _is_file(path: Path) -> bool:
    """Whether it is a regular file, or a link to one; false for a name that no file could have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
