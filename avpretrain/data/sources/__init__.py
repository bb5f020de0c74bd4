"""Where clips come from: one small file for each public data set, all giving the same `Listing`.

A new data set is one new file with `def find(root, table) -> Listing` and one line in `SOURCES`.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from avpretrain.data.sources.base import Item, Listing
from avpretrain.errors import UserError

SourceName = Literal[
    "folder", "huggingface", "audioset", "vggsound", "esc50", "esc10", "speechcommands", "fsdd", "grid",
    "folder_speech", "grid_speech",
]  # fmt: skip
SOURCES: dict[str, str] = {
    "folder": "folder:find",
    "huggingface": "huggingface:find",
    "audioset": "audioset:find",
    "vggsound": "vggsound:find",
    "esc50": "esc50:find",
    "esc10": "esc50:find_esc10",
    "speechcommands": "speechcommands:find",
    "fsdd": "fsdd:find",
    "grid": "grid:find",
    "folder_speech": "speech:find",
    "grid_speech": "speech:find_grid",
}
"""Name of a source to the module and function that find its files."""

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

__all__ = ["SOURCES", "Item", "Listing", "SourceName", "find_items"]


def find_items(source: SourceName, root: Path, table: Path | None) -> Listing:
    """What a source offers under `root`, in a fixed order.

    Args:
        source: name of the adapter.
        root: the folder that holds the files.
        table: the file of labels or segments, where it does not lie where the source expects it.

    Raises:
        UserError: there is no such folder, or nothing of this source in it.
    """
    if not root.is_dir():
        raise UserError(f"{root} is {'a file' if root.exists() else 'not there'}; name the folder that holds the files")
    if table is not None and not table.is_file():
        raise UserError(f"{table} is {'a folder' if table.exists() else 'not there'}; name the table's file")
    module, function = SOURCES[source].split(":")
    find = getattr(importlib.import_module(f"avpretrain.data.sources.{module}"), function)
    listing: Listing = find(root, table)
    if not listing.items:
        raise UserError(f"{root} holds no files of source '{source}'" + _hint(listing))
    listing.items = [replace(item, split=_plain(item.split)) for item in listing.items]
    seen: set[tuple[str, object]] = set()
    for item in listing.items:
        if (item.path, item.segment) in seen:
            raise UserError(f"the table of {root} names {item.path} twice; keep one row for each file")
        seen.add((item.path, item.segment))
    return listing


def _plain(split: str) -> str:
    """A split's name as file names can hold it, and one name for what has several."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", split.strip()).strip("_")[:60] or "train"
    return _SPLIT_NAMES.get(name.lower(), name)


def _hint(listing: Listing) -> str:
    if listing.missing:
        return f": all {len(listing.missing)} that its table names are missing, such as {listing.missing[0]}"
    return "; videos and sound files are known by their extension (.mp4, .webm, .wav, .flac ...)"
