"""What every source gives, and the few things most of them do: read tables, look for files, keep inside the folder."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from avpretrain.data.media import AUDIO_EXTENSIONS as AUDIO_EXTENSIONS
from avpretrain.data.media import Segment
from avpretrain.data.transcode import Need
from avpretrain.errors import UserError

VIDEO_EXTENSIONS = frozenset(
    {
        ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mpe", ".vob", ".ts", ".m2ts",
        ".mts", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".mxf", ".divx",
    }
)  # fmt: skip
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | AUDIO_EXTENSIONS

Labels = dict[str, str | list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One file, or one segment of a file, that belongs to a data set."""

    path: str
    """Relative to the source folder, with forward slashes."""
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

    @property
    def present(self) -> float:
        """Share of the set that is there."""
        return len(self.items) / max(1, len(self.items) + len(self.missing))


def need_of(path: str) -> Need:
    """What a file's extension promises."""
    return "audio" if PurePosixPath(path).suffix.lower() in AUDIO_EXTENSIONS else "both"


def walk(root: Path) -> Iterator[str]:
    """Relative paths of all files that are not hidden, sorted."""
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if not any(part.startswith(".") for part in relative.parts) and path.is_file():
            yield relative.as_posix()


def inside(name: str) -> str | None:
    """A table's path made plain; none if it is absolute or leads out of the folder."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return None
    return path.as_posix()


def read_rows(table: Path, columns: list[str] | None = None) -> list[dict[str, str]]:
    """Rows of a CSV file by column name; `columns` names them where the file has no header.

    Raises:
        UserError: the file is not CSV in UTF-8.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, fieldnames=columns, skipinitialspace=True)
            return [{k: v or "" for k, v in row.items() if k is not None} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a CSV file in UTF-8: {error}") from None
