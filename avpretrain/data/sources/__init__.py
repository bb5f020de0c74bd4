"""Where clips come from: one small file for each public data set, all giving the same `Listing`.

A new data set is one new file with `def find(root, table) -> Listing` and one line in `SOURCES`.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.choices import SourceName
from avpretrain.data.names import escape_name
from avpretrain.data.sources.base import Item, Listing, scan
from avpretrain.data.sources.label_values import split_cell
from avpretrain.data.splits import ROLES

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

_SPLIT_NAMES = {name: role for name, role in ROLES.items() if name != "eval"}  # AudioSet's own name stays

__all__ = ["SOURCES", "Item", "Listing", "SourceName", "find_items"]


def find_items(
    source: SourceName, root: Path, table: Path | None, multi_label: Sequence[str] = (), separator: str = ";"
) -> Listing:
    """What a source offers under `root`, in a fixed order; a file that several links lead to stands in it once.

    Args:
        source: name of the adapter.
        root: the folder that holds the files.
        table: the file of labels or segments, where it does not lie where the source expects it.
        multi_label: labels whose text holds several classes.
        separator: what stands between them.

    Raises:
        UserError: there is no such folder, or nothing of this source in it.
        UsageError: no file has a label of `multi_label`.
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
    seen: set[tuple[str, object]] = set()
    for item in listing.items:
        if (item.path, item.segment) in seen:
            raise UserError(f"the table of {root} names {escape_name(item.path)} twice; keep one row for each file")
        seen.add((item.path, item.segment))
    listing.items = _once(root, listing)
    if multi_label:
        _require_labels(listing, multi_label)
    change = functools.partial(_final, multi_label=multi_label, separator=separator)
    listing.items = [change(item) for item in listing.items]
    listing.absent = None if listing.absent is None else [change(item) for item in listing.absent]
    listing.notes += [*_perhaps_several(listing, separator), *scan(root).notes]
    return listing


def _final(item: Item, multi_label: Sequence[str], separator: str) -> Item:
    """An item with its split's plain name, and with several classes where a label's text holds them."""
    labels = dict(item.labels)
    for name in multi_label:
        value = labels.get(name)
        if isinstance(value, str):
            labels[name] = split_cell(value, separator)
    return replace(item, split=_plain(item.split), labels=labels)


def _require_labels(listing: Listing, names: Sequence[str]) -> None:
    there = {name for item in listing.items for name in item.labels}
    lacking = next((name for name in names if name not in there), None)
    if lacking is not None:
        raise UsageError(
            f"--multi-label {lacking}: no file has that label; labels: {', '.join(sorted(there)) or 'none'}"
        )


def _perhaps_several(listing: Listing, separator: str) -> list[str]:
    """A line for each label whose texts look like lists, and are taken for one class each."""
    looks = Counter(
        name
        for item in listing.items
        for name, value in item.labels.items()
        if isinstance(value, str) and _is_like_a_list(value, separator)
    )
    return [
        f"the label '{name}' has '{separator}' in {count} of its texts, each taken for one class; "
        f"if they are several classes: --multi-label {name}"
        for name, count in looks.items()
        if name != "words"
    ]


def _is_like_a_list(text: str, separator: str) -> bool:
    """Whether it is a few short names, with separators between them, rather than a sentence."""
    parts = text.split(separator)
    return 2 <= len(parts) <= 20 and all(1 <= len(part.split()) <= 4 for part in parts)


def _once(root: Path, listing: Listing) -> list[Item]:
    """The items without those whose file is that of another item, by another link: the one that is no link stays."""
    kept: dict[tuple[int, int, object], Item] = {}
    twice: list[str] = []
    for item in listing.items:
        try:
            status = (root / item.path).stat()
        except OSError:
            kept[-1, len(kept), item.segment] = item
            continue
        key = status.st_dev, status.st_ino, item.segment
        other = kept.get(key)
        if other is None:
            kept[key] = item
        elif status.st_nlink > 1 or os.path.realpath(root / item.path) == os.path.realpath(root / other.path):
            if (root / other.path).is_symlink() and not (root / item.path).is_symlink():
                item, kept[key] = other, item
            twice.append(f"{escape_name(item.path)} is {escape_name(kept[key].path)}")
        else:  # a file system that gives files no numbers of their own
            kept[-1, len(kept), item.segment] = item
    if twice:
        listing.notes.append(f"{len(twice)} files are links to others of the set and are taken once, e.g. {twice[0]}")
    return list(kept.values())


def _plain(split: str) -> str:
    """A split's name as file names can hold it, and one name for what has several."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", split.strip()).strip("_")[:60] or "train"
    return _SPLIT_NAMES.get(name.lower(), name)


def _hint(listing: Listing) -> str:
    if listing.missing:
        return (
            f": all {len(listing.missing)} that its table names are missing, such as {escape_name(listing.missing[0])}"
        )
    return "; video and audio files are known by their extension (.mp4, .webm, .wav, .flac ...)"
