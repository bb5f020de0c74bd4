"""A folder as Hugging Face's AudioFolder and VideoFolder read it: metadata.csv, .jsonl or .parquet with `file_name`.

The file may lie at the top or once in each split's folder (train/metadata.csv, data/test/metadata.csv ...), with names
relative to itself; the split is then the folder's name, unless a `split` column says otherwise.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from avpretrain.core.errors import UserError
from avpretrain.data.sources.base import MEDIA_EXTENSIONS, Item, Listing, walk
from avpretrain.data.sources.folder import SPLITS, from_table

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def find(root: Path, table: Path | None) -> Listing:
    """Items of a Hugging Face style folder."""
    tables = [table] if table else [root / path for path in walk(root) if PurePosixPath(path).name in NAMES]
    if not tables:
        raise UserError(f"{root} has no {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    absent: list[Item] = []
    whole = Listing(items=[], absent=absent)
    for path in tables:
        folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
        split = next((name for name in reversed(folders) if name.lower() in SPLITS), "train")
        part = from_table(root, path, split)
        whole.items += part.items
        whole.missing += part.missing
        whole.notes += part.notes
        absent += part.absent or []
        whole.ignored = part.ignored
    if len(tables) > 1:
        named = {item.path for item in whole.items}
        whole.ignored = sum(p not in named and PurePosixPath(p).suffix.lower() in MEDIA_EXTENSIONS for p in walk(root))
    return whole
