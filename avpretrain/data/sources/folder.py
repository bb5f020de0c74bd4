"""A plain folder. Labels come from a table in it, or else from the names of its sub-folders.

The table is `labels.csv` or `metadata.csv` with a header: one column names the file (file, filename, file_name or path,
relative to the table), `split` and `license` are what they say, every other column is a label. Without a table,
`train/dog/1.mp4` is of split train and class dog; the split may be left out.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from avpretrain.data.sources.base import MEDIA_EXTENSIONS, Item, Labels, Listing, inside, read_rows, walk
from avpretrain.errors import UserError

TABLES = ("labels.csv", "metadata.csv")
FILE_COLUMNS = ("file", "filename", "file_name", "path")
LICENSE_COLUMNS = ("license", "licence")
SPLITS = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"])


def find(root: Path, table: Path | None) -> Listing:
    """Items of a plain folder."""
    table = table or next((root / name for name in TABLES if (root / name).is_file()), None)
    return from_table(root, table, read_rows(table)) if table else from_folders(root)


def from_table(root: Path, table: Path, rows: list[dict[str, str]], split: str = "train") -> Listing:
    """Items that a table's rows name; `split` where a row names none."""
    header = list(rows[0]) if rows else []
    column = next((name for name in FILE_COLUMNS if name in header), None)
    if column is None:
        raise UserError(f"{table} has no column that names the file; call it {FILE_COLUMNS[0]}")
    base = table.parent.relative_to(root).as_posix() if table.is_relative_to(root) else "."
    listing = Listing(items=[])
    special = {column, "split", *LICENSE_COLUMNS}
    for row in rows:
        path = inside(row[column])
        joined = None if path is None else PurePosixPath(base, path).as_posix()
        if joined is None or not (root / joined).is_file():
            listing.missing.append(row[column])
            continue
        labels: Labels = {name: value for name, value in row.items() if name not in special and value != ""}
        license_text = next((row[name] for name in LICENSE_COLUMNS if row.get(name)), "")
        listing.items.append(Item(path=joined, labels=labels, split=row.get("split") or split, license=license_text))
    named = {item.path for item in listing.items}
    listing.ignored = sum(p not in named and PurePosixPath(p).suffix.lower() in MEDIA_EXTENSIONS for p in walk(root))
    return listing


def from_folders(root: Path) -> Listing:
    """Items of a folder without a table."""
    listing = Listing(items=[])
    for path in walk(root):
        if PurePosixPath(path).suffix.lower() not in MEDIA_EXTENSIONS:
            listing.ignored += 1
            continue
        folders = list(PurePosixPath(path).parts[:-1])
        split = folders.pop(0) if folders and folders[0].lower() in SPLITS else "train"
        listing.items.append(Item(path=path, split=split, labels={"class": folders[0]} if folders else {}))
    return listing
