"""Names of files that hold a segment of a YouTube video, or the whole of it, as copies of public sets have them."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from avpretrain.data.sources.base import MEDIA_EXTENSIONS, VIDEO_EXTENSIONS

_TOLERANCE = 1.0
"""Seconds by which a name may round its start."""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A media file and what its name says."""

    path: str
    start: float | None
    """The number after the id, in seconds or milliseconds; none = the id stands alone."""

    @property
    def is_cut(self) -> bool:
        """Whether the name says that the file is a segment, cut already."""
        return self.start is not None

    def fits(self, start: float) -> bool:
        """Whether it may hold the segment that begins at `start` seconds."""
        if self.start is None:
            return True
        seconds = [self.start] + ([self.start / 1000] if self.start >= 1000 else [])
        return any(abs(value - start) < _TOLERANCE for value in seconds)


def video_id(stem: str, ids: Container[str]) -> tuple[str, float | None] | None:
    """The id that a file's name begins with, alone, after a Y, or before _START, and that START; none = no id."""
    for name in (stem, stem[1:]) if stem.startswith("Y") else (stem,):
        if name in ids:
            return name, None
        for match in reversed(list(re.finditer(r"[_-](\d+(\.\d+)?)", name))):
            if name[: match.start()] in ids:
                return name[: match.start()], float(match[1])
    return None


def files_by_video(paths: Iterable[str], ids: Container[str]) -> dict[str, list[NamedFile]]:
    """For each id, the media files that bear it: videos before audio, those named with a start before others."""
    files: dict[str, list[NamedFile]] = {}
    for path in paths:
        place = PurePosixPath(path)
        id_and_start = video_id(place.stem, ids) if place.suffix.lower() in MEDIA_EXTENSIONS else None
        if id_and_start is not None:
            files.setdefault(id_and_start[0], []).append(NamedFile(path, id_and_start[1]))
    return {name: sorted(named, key=_rank) for name, named in files.items()}


def _rank(file: NamedFile) -> tuple[bool, bool]:
    return PurePosixPath(file.path).suffix.lower() not in VIDEO_EXTENSIONS, not file.is_cut
