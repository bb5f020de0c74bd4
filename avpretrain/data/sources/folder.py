"""A plain folder. Labels come from a table in it, or else from the names of its sub-folders.

The table is `labels.csv` or `metadata.csv` (or .tsv) with a header: one column names the file (file, filename,
file_name or path, in any case, relative to the table), `split` and `license` are what they say, every other column is
a label. Without a table, `train/dog/1.mp4` is of split train and class dog; the split may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from avpretrain.core.errors import UserError
from avpretrain.data.names import escape_name, printable_name
from avpretrain.data.sources.base import MEDIA_EXTENSIONS, Item, Labels, Listing, inside, is_file, walk
from avpretrain.data.sources.label_values import Nested, cell_value, label_value
from avpretrain.data.sources.tables import FILE_COLUMNS, TYPED, listed, read_table

TABLES = ("labels.csv", "metadata.csv", "labels.tsv", "metadata.tsv")
LICENSE_COLUMNS = ("license", "licence")
SPLITS = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"])


def find(root: Path, table: Path | None) -> Listing:
    """Items of a plain folder."""
    table = table or next((root / name for name in TABLES if (root / name).is_file()), None)
    return from_table(root, table) if table else from_folders(root)


def from_table(root: Path, table: Path, split: str = "train") -> Listing:
    """Items that a table's rows name; `split` where a row names none.

    Raises:
        UserError: it can't be read, or no column names the file; the message gives the columns there are.
    """
    rows = read_table(table)
    header = list(dict.fromkeys(name for row in rows for name in row))
    lower = {name: name.strip().lower() for name in header}
    column = next((name for known in FILE_COLUMNS for name in header if lower[name] == known), None)
    if column is None:
        raise UserError(
            f"{table} has no column that names the file; call it {FILE_COLUMNS[0]}; its columns: {listed(header)}"
        )
    licenses = [name for name in header if lower[name] in LICENSE_COLUMNS]
    splits = [name for name in header if lower[name] == "split"]
    special = {column, *splits, *licenses}
    names = [name for name in header if name not in special]
    base = table.parent.relative_to(root).as_posix() if table.is_relative_to(root) else "."
    absent: list[Item] = []
    listing = Listing(items=[], absent=absent)
    read = label_value if table.suffix.lower() in TYPED else cell_value
    nested: set[str] = set()
    for row in rows:
        asked = row.get(column)
        path = inside(asked) if isinstance(asked, str) else None
        joined = None if path is None else PurePosixPath(base, path).as_posix()
        actual = None if joined is None else is_file(root, joined)
        labels = _labels(row, names, read, nested)
        own = _first_text(row, splits) or split
        item = Item(path=actual or joined or "", labels=labels, split=own, license=_first_text(row, licenses))
        if actual is None:
            listing.missing.append(str(asked))
            absent += [item] if joined else []
        else:
            listing.items.append(item)
    if nested:
        listing.notes.append(
            f"columns whose values are nested are no labels and are left out: {listed(sorted(nested))}"
        )
    named = {item.path for item in listing.items}
    listing.ignored = sum(p not in named and PurePosixPath(p).suffix.lower() in MEDIA_EXTENSIONS for p in walk(root))
    return listing


def _labels(row: dict[str, Any], names: Sequence[str], read: Any, nested: set[str]) -> Labels:
    """A row's labels; columns with values that can't be one go to `nested`."""
    labels: Labels = {}
    for name in names:
        value = read(row[name]) if row.get(name) is not None else None
        if isinstance(value, Nested):
            nested.add(name)
        elif value is not None:
            labels[printable_name(name)] = value
    return labels


def _first_text(row: dict[str, Any], names: Sequence[str]) -> str:
    """The first of some cells that is not empty."""
    values = (label_value(row.get(name)) for name in names)
    return next((value for value in values if isinstance(value, str)), "")


def from_folders(root: Path) -> Listing:
    """Items of a folder without a table."""
    listing = Listing(items=[])
    for path in walk(root):
        if PurePosixPath(path).suffix.lower() not in MEDIA_EXTENSIONS:
            listing.ignored += 1
            continue
        folders = list(PurePosixPath(path).parts[:-1])
        split = folders.pop(0) if folders and folders[0].lower() in SPLITS else "train"
        labels: Labels = {"class": escape_name(folders[0])} if folders else {}
        listing.items.append(Item(path=path, split=split, labels=labels))
    return listing
