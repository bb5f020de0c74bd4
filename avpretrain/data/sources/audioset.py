"""AudioSet: `*_segments.csv` (YTID, start, end, labels) and a folder of clips or whole videos, in any sub-folders.

A clip is found by its YouTube id: ID.mp4, YID.wav, ID_30000.flac, ID_30-40.webm ... A file whose name holds the start
of the segment, in seconds or milliseconds, is that segment, cut already: its first 10 s are taken. One that bears the
id alone is the segment if it is hardly longer than that, and else the whole video, which is cut. Names of the 527
classes come from class_labels_indices.csv if it is there. Splits are named after their lists: balanced_train,
unbalanced_train, eval.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from avpretrain.core.errors import UserError
from avpretrain.data.media import Segment
from avpretrain.data.sources.base import MEDIA_EXTENSIONS, Item, Listing, read_rows, walk
from avpretrain.data.sources.segments import files_by_video

COLUMNS = ["YTID", "start_seconds", "end_seconds", "positive_labels"]


def find(root: Path, table: Path | None) -> Listing:
    """Items of AudioSet."""
    tables = [table] if table else [root / path for path in walk(root) if path.endswith("_segments.csv")]
    if not tables:
        raise UserError(f"{root} has no *_segments.csv of AudioSet; give its path with --table")
    names = _class_names(root, tables[0])
    rows = [(row, path.stem.removesuffix("_segments")) for path in tables for row in _segments(path)]
    files = files_by_video(walk(root), {row["YTID"] for row, _ in rows})
    listing = Listing(items=[])
    used: set[str] = set()
    for row, split in rows:
        start = float(row["start_seconds"])
        file = next((file for file in files.get(row["YTID"], ()) if file.fits(start)), None)
        if file is None:
            listing.missing.append(row["YTID"])
            continue
        used.add(file.path)
        mids = row["positive_labels"].split(",")
        segment = Segment(start, float(row["end_seconds"]), is_whole_file=True if file.is_cut else None)
        labels: dict[str, str | list[str]] = {"class": [names.get(mid.strip(), mid.strip()) for mid in mids]}
        listing.items.append(Item(path=file.path, labels=labels, split=split, segment=segment))
    listing.ignored = sum(PurePosixPath(p).suffix.lower() in MEDIA_EXTENSIONS and p not in used for p in walk(root))
    return listing


def _segments(table: Path) -> list[dict[str, str]]:
    rows = [row for row in read_rows(table, COLUMNS) if row["YTID"] and not row["YTID"].startswith("#")]
    for row in rows:
        if not all(re.fullmatch(r"\d+(\.\d+)?", row[name]) for name in COLUMNS[1:3]):
            raise UserError(f"{table}: row of {row['YTID']} has no start and end in seconds")
    return rows


def _class_names(root: Path, table: Path) -> dict[str, str]:
    inside = [root / path for path in walk(root) if PurePosixPath(path).name == "class_labels_indices.csv"]
    tables = [*inside, *table.parent.glob("class_labels_indices.csv")]
    rows = read_rows(tables[0], need=("mid", "display_name")) if tables else []
    return {row["mid"]: row["display_name"] for row in rows}
