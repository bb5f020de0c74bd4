"""ESC-50 and ESC-10: meta/esc50.csv and audio/*.wav.

The official folds are the label `fold`; every clip is of split train.
"""

from __future__ import annotations

from pathlib import Path

from avpretrain.core.errors import UserError
from avpretrain.data.sources.base import Item, Listing, is_file, read_rows


def find(root: Path, table: Path | None) -> Listing:
    """Items of ESC-50."""
    return _find(root, table, subset=False)


def find_esc10(root: Path, table: Path | None) -> Listing:
    """Items of ESC-10, a subset of ESC-50 in the same folder."""
    return _find(root, table, subset=True)


def _find(root: Path, table: Path | None, subset: bool) -> Listing:
    table = table or root / "meta" / "esc50.csv"
    if not table.is_file():
        raise UserError(f"{root} has no meta/esc50.csv; is it the folder of ESC-50?")
    listing = Listing(items=[])
    for row in read_rows(table, need=("filename", "fold", "category", "esc10")):
        if subset and row["esc10"] != "True":
            continue
        path = f"audio/{row['filename']}"
        if is_file(root, path) is None:
            listing.missing.append(row["filename"])
            continue
        labels: dict[str, str | list[str]] = {"class": row["category"], "fold": row["fold"]}
        # the set is CC BY-NC, its part ESC-10 is CC BY
        license_text = "CC BY 3.0" if row["esc10"] == "True" else "CC BY-NC 3.0"
        listing.items.append(Item(path=path, labels=labels, license=license_text, need="audio"))
    return listing
