"""A plain folder of media as a data set: sharded once into a cache, brought up to date when it is named again."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

from avpretrain.core.errors import UserError
from avpretrain.data.place import DATASET_NAME, MANIFEST_NAME
from avpretrain.data.write.settings import ShardConfig

__all__ = ["as_shards", "cache_folder"]

CACHE_VARIABLE = "AVPRETRAIN_CACHE"
"""Environment variable that names the folder of the cache; without it, ~/.cache/avpretrain."""
Shard = Callable[[Path, Path, ShardConfig], object]
"""`make_shards`, or what shows its progress as well."""


def as_shards(roots: Iterable[str | Path], shard: Shard | None = None) -> tuple[str, ...]:
    """Sharded data sets: those among `roots` as they are, and one in the cache for each plain folder of media.

    A folder's data set is named by the folder's path. Each call adds files that are new, as `avpretrain shards` does;
    processes that ask for the same folder at once, such as the ranks of a launch, take turns, and one does the work.

    Args:
        roots: folders and URLs.
        shard: does the work; none = `make_shards`, without a word.

    Raises:
        UserError: no file of a folder is usable, or the cache can't be written.
    """
    return tuple(str(_sharded(Path(root), shard)) if _is_of_media(root) else str(root) for root in roots)


def cache_folder(kind: Literal["shards", "tokens"] = "shards") -> Path:
    """Where the data sets of plain folders lie."""
    named = os.environ.get(CACHE_VARIABLE)
    return (Path(named) if named else Path.home() / ".cache" / "avpretrain") / kind


def place_of(folder: Path) -> Path:
    """Where a folder's data set lies in the cache."""
    path = folder.resolve()
    return cache_folder() / f"{path.name or 'root'}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


def _is_of_media(root: str | Path) -> bool:
    folder = Path(root)
    if "://" in str(root) or not folder.is_dir() or any((folder / n).exists() for n in (DATASET_NAME, MANIFEST_NAME)):
        return False
    from avpretrain.data.sources.base import MEDIA_EXTENSIONS, walk

    return any(PurePosixPath(path).suffix.lower() in MEDIA_EXTENSIONS for path in walk(folder))


def _sharded(folder: Path, shard: Shard | None) -> Path:
    out, asked = place_of(folder), time.time()
    if shard is None:
        from avpretrain.data.write.shards import make_shards

        shard = make_shards
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.with_name(f"{out.name}.done").open("a+") as done:
            fcntl.flock(done, fcntl.LOCK_EX)
            done.seek(0)
            if done.read() == "done" and os.fstat(done.fileno()).st_mtime >= asked:
                return out  # another process did it while this one waited
            done.truncate(0)
            shard(folder, out, ShardConfig())
            done.write("done")
    except OSError as error:
        raise UserError(
            f"can't write the shards of {folder} to {out}: {error.strerror or error}; "
            f"set {CACHE_VARIABLE} to a folder with room, or make them with: avpretrain shards {folder} SHARDS"
        ) from error
    return out
