"""Which files make a sharded data set, and why a folder is none; imports nothing: a wrong path is said at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from avpretrain.core.errors import UserError

DATASET_NAME, MANIFEST_NAME = "dataset.json", "manifest.arrow"


def require_data_sets(roots: Iterable[str | Path]) -> None:
    """Checks that local folders are sharded data sets, as far as names tell; URLs pass.

    Raises:
        UserError: one is none.
    """
    for root in roots:
        folder = Path(root)
        if "://" not in str(root) and not all((folder / name).exists() for name in (DATASET_NAME, MANIFEST_NAME)):
            raise UserError(why_no_data_set(folder))


def why_no_data_set(root: Path) -> str:
    """Why a folder without one of the two files can't be opened; what has media in it is meant as the source of one."""
    if not root.exists():
        return f"there is no {root}; name a folder that avpretrain shards wrote"
    if root.is_file():
        return f"{root} is a file; name the folder that avpretrain shards wrote"
    for name, other in ((DATASET_NAME, MANIFEST_NAME), (MANIFEST_NAME, DATASET_NAME)):
        if (root / name).is_file():
            return f"{root}: {other} is missing; fetch it again, or run avpretrain shards again"
    return (
        f"{root} is not a sharded data set (it has no {DATASET_NAME}); "
        f"make one of a folder of videos with: avpretrain shards VIDEOS SHARDS, and name SHARDS here"
    )
