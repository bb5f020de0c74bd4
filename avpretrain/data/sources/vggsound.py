"""VGGSound: vggsound.csv (YouTube id, start in seconds, label, split; no header) and clips or whole videos.

Clips are named ID_START.mp4, START in seconds with leading zeros, as most copies have it; a file named ID alone is
taken as the whole video and cut to the 10 s that follow START.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from avpretrain.data.media import Segment
from avpretrain.data.sources.base import MEDIA_EXTENSIONS, Item, Listing, read_rows, walk
from avpretrain.errors import UserError

SECONDS = 10.0


def find(root: Path, table: Path | None) -> Listing:
    """Items of VGGSound."""
    tables = (p for p in walk(root) if fnmatch(PurePosixPath(p).name, "vggsound*.csv"))
    table = table or next((root / path for path in tables), None)
    if table is None:
        raise UserError(f"{root} has no vggsound.csv; give its path with --table")
    files = {
        PurePosixPath(path).stem: path for path in walk(root) if PurePosixPath(path).suffix.lower() in MEDIA_EXTENSIONS
    }
    listing = Listing(items=[])
    used: set[str] = set()
    for row in read_rows(table, ["id", "start", "label", "split"]):
        if not row["start"].isdigit() or not row["split"]:
            raise UserError(f"{table}: row of {row['id']} is not 'id,start,label,split'")
        start = int(row["start"])
        clip = f"{row['id']}_{start:06d}"
        path = next((files[n] for n in (clip, f"{row['id']}_{start}", row["id"]) if n in files), None)
        if path is None:
            listing.missing.append(clip)
            continue
        used.add(path)
        segment = Segment(float(start), start + SECONDS)
        listing.items.append(Item(path=path, labels={"class": row["label"]}, split=row["split"], segment=segment))
    listing.ignored = len(set(files.values()) - used)
    return listing
