"""A folder as Hugging Face's AudioFolder and VideoFolder read it: metadata.csv or .jsonl with a `file_name` column.

The file may lie at the top or once in each split's folder (train/metadata.csv, data/test/metadata.csv ...), with names
relative to itself; the split is then the folder's name, unless a `split` column says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path

from avpretrain.data.sources.base import Listing, read_rows
from avpretrain.data.sources.folder import SPLITS, from_table
from avpretrain.errors import UserError
from avpretrain.files import read_text


def find(root: Path, table: Path | None) -> Listing:
    """Items of a Hugging Face style folder."""
    tables = [table] if table else sorted([*root.rglob("metadata.csv"), *root.rglob("metadata.jsonl")])
    if not tables:
        raise UserError(f"{root} has no metadata.csv or metadata.jsonl")
    whole = Listing(items=[])
    for path in tables:
        folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
        split = next((name for name in reversed(folders) if name.lower() in SPLITS), "train")
        part = from_table(root, path, _rows(path), split)
        whole.items += part.items
        whole.missing += part.missing
        whole.ignored = part.ignored
    if len(tables) > 1:
        whole.ignored = 0
    return whole


def _rows(table: Path) -> list[dict[str, str]]:
    if table.suffix == ".csv":
        return read_rows(table)
    rows = []
    for number, line in enumerate(read_text(table, 4 << 30).splitlines(), 1):
        try:
            values = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise UserError(f"{table}, line {number}: not JSON ({error})") from None
        if isinstance(values, dict):
            rows.append(
                {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
            )
    return rows
