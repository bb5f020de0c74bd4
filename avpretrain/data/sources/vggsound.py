"""VGGSound: vggsound.csv (YouTube id, start in seconds, label, split; no header) and clips or whole videos.

Clips are named ID_START.mp4, START in seconds with leading zeros, as most copies have it; such a file is the segment,
cut already, and its first 10 s are taken. A file named ID alone is the whole video, of which the 10 s that follow START
are cut.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from avpretrain.core.errors import UserError
from avpretrain.data.media import Segment
from avpretrain.data.sources.base import MEDIA_EXTENSIONS, Item, Listing, read_rows, walk
from avpretrain.data.sources.segments import files_by_video

SECONDS = 10.0


def find(root: Path, table: Path | None) -> Listing:
    """Items of VGGSound."""
    tables = (p for p in walk(root) if fnmatch(PurePosixPath(p).name, "vggsound*.csv"))
    table = table or next((root / path for path in tables), None)
    if table is None:
        raise UserError(f"{root} has no vggsound.csv; give its path with --table")
    rows = read_rows(table, ["id", "start", "label", "split"])
    paths = [path for path in walk(root) if PurePosixPath(path).suffix.lower() in MEDIA_EXTENSIONS]
    files = files_by_video(paths, {row["id"] for row in rows})
    listing = Listing(items=[])
    used: set[str] = set()
    for row in rows:
        if not row["start"].isdigit() or not row["split"]:
            raise UserError(f"{table}: row of {row['id']} is not 'id,start,label,split'")
        start = int(row["start"])
        file = next((file for file in files.get(row["id"], ()) if file.fits(start)), None)
        if file is None:
            listing.missing.append(f"{row['id']}_{start:06d}")
            continue
        used.add(file.path)
        segment = Segment(float(start), start + SECONDS, is_whole_file=file.is_cut)
        listing.items.append(Item(path=file.path, labels={"class": row["label"]}, split=row["split"], segment=segment))
    listing.ignored = len(set(paths) - used)
    return listing
