"""Speech or silence: talkers' files cut into windows by the times of their words.

The label `words` of a file holds START-END:WORD in seconds, joined by semicolons, as GRID's sources give it. Words that
follow each other are a stretch of speech; what lies between, or is named sil or sp, is a stretch of silence. Each
stretch is cut into as many whole windows as fit, from its start, with the label `speech`: yes or no; what is left over
is dropped, so no window holds both. Files without word times are missing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from avpretrain.core.errors import UserError
from avpretrain.data.media import Segment
from avpretrain.data.names import escape_name
from avpretrain.data.sources import folder, grid
from avpretrain.data.sources.base import Item, Listing

WINDOW_SECONDS = 0.5
SILENCE = frozenset(["sil", "sp"])
_TOLERANCE = 1e-6

Stretch = tuple[float, float, bool]
"""Start and end in seconds, and whether it is speech."""


def find(root: Path, table: Path | None) -> Listing:
    """Windows of a folder whose table has a column `words`."""
    return _windows(folder.find(root, table))


def find_grid(root: Path, table: Path | None) -> Listing:
    """Windows of GRID in its own layout."""
    return _windows(grid.find(root, table))


def _windows(listing: Listing) -> Listing:
    """Each item's windows in its place; of its labels `speaker` alone stays, since the others are of its whole file."""
    items: list[Item] = []
    for item in listing.items:
        words = item.labels.get("words", "")
        if not isinstance(words, str) or not words:
            listing.missing.append(f"word times of {escape_name(item.path)}")
            continue
        kept = {name: value for name, value in item.labels.items() if name == "speaker"}
        for start, end, speech in stretches(words, item.path):
            for number in range(int((end - start) / WINDOW_SECONDS + _TOLERANCE)):
                first = round(start + number * WINDOW_SECONDS, 3)
                segment = Segment(first, round(first + WINDOW_SECONDS, 3), is_whole_file=False)
                items.append(replace(item, labels={**kept, "speech": "yes" if speech else "no"}, segment=segment))
    return replace(listing, items=items, absent=None)


def stretches(words: str, path: str) -> list[Stretch]:
    """Speech and silence in turn, from the first time named to the last.

    Args:
        words: START-END:WORD in seconds, joined by semicolons, in order of time.
        path: the file they belong to, for errors.

    Raises:
        UserError: they are not written so.
    """
    parts: list[Stretch] = []
    for entry in words.split(";"):
        times, _, word = entry.partition(":")
        try:
            start, end = (float(time) for time in times.split("-"))
        except ValueError:
            raise UserError(f"the word times of {path} hold '{entry}', which is not START-END:WORD") from None
        speech = bool(word) and word.strip().lower() not in SILENCE
        if parts and start > parts[-1][1] + _TOLERANCE:  # nothing is said of the time between
            _add(parts, (parts[-1][1], start, False))
        _add(parts, (start, end, speech))
    return parts


def _add(parts: list[Stretch], one: Stretch) -> None:
    """Appends, or lengthens the last stretch where it is of the same kind."""
    if parts and parts[-1][2] == one[2]:
        parts[-1] = (parts[-1][0], max(parts[-1][1], one[1]), one[2])
    elif one[1] > one[0]:
        parts.append(one)
