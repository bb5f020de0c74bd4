"""Finding every changed bit of a data set on local disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from avpretrain.core.files import open_file, read_json
from avpretrain.data.manifest import Clip, Manifest, Shard
from avpretrain.data.place import DATASET_NAME, MANIFEST_NAME
from avpretrain.data.summary import checksum, fingerprint

__all__ = ["label_counts", "verify"]

BLOCK = 1 << 22


def verify(root: Path, on_shard: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Reads everything and compares it with the checksums.

    Args:
        root: folder of the data set.
        on_shard: told how many shards of how many are read.

    Returns:
        a line for each thing that is wrong; none = every bit of shards, manifest and summary is as it was written.

    Raises:
        UserError: it is no data set.
    """
    info = read_json(root / DATASET_NAME, "data set summary")
    if not isinstance(info, dict) or info.get("checksum") != checksum(info):
        return [f"{DATASET_NAME}: damaged (its checksum does not fit)"]
    try:
        seal = _sha256(root / MANIFEST_NAME)
    except OSError as error:
        return [f"{MANIFEST_NAME}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}"]
    if seal != info.get("manifest_sha256"):
        return [f"{MANIFEST_NAME}: damaged (its checksum does not fit)"]
    manifest = Manifest(root)
    problems = [f"{MANIFEST_NAME}: clip {manifest.clip(r).key} in row {r}: {why}" for r, why in manifest.bad.items()]
    for number, shard in enumerate(manifest.shards):
        problems += _check_shard(manifest, number, shard)
        on_shard(number + 1, len(manifest.shards))
    clips = (manifest.clip(row) for row in range(len(manifest)))
    if not manifest.bad and fingerprint(clips, [shard.split for shard in manifest.shards]) != manifest.fingerprint:
        problems.append(f"{MANIFEST_NAME}: its clips do not give the fingerprint in {DATASET_NAME}")
    return problems


def _check_shard(manifest: Manifest, number: int, shard: Shard) -> list[str]:
    path = manifest.root / shard.name
    try:
        size, seal = path.stat().st_size, _sha256(path)
    except OSError as error:
        return [f"{shard.name}: {error.strerror}"]
    if seal == shard.sha256:
        return []
    problems = [] if size == shard.bytes else [f"{shard.name}: has {size} bytes, should have {shard.bytes}"]
    first, last = manifest.shard_starts[number : number + 2]
    bad = [clip.key for clip in (manifest.clip(row) for row in range(first, last)) if not _intact(path, clip)]
    problems += [f"{shard.name}: clip {key} is damaged" for key in bad]
    return problems or [f"{shard.name}: damaged outside the media of its clips (tar headers or JSON)"]


def _intact(path: Path, clip: Clip) -> bool:
    digest = hashlib.sha256()
    with open_file(path) as file:
        for offset, length in ((clip.video_offset, clip.video_length), (clip.audio_offset, clip.audio_length)):
            file.seek(offset)
            digest.update(file.read(length))
    return digest.hexdigest() == clip.sha256


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def label_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """How many clips bear each value of each label; labels of free text are left out."""
    names = [name for name, values in manifest.info["labels"].items() if values]
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(manifest.info["labels"][name], 0) for name in names}
    for text in manifest.table.column("labels").to_pylist():
        for name, value in json.loads(text).items():
            for one in [value] if isinstance(value, str) else value:
                if name in counts:
                    counts[name][one] = counts[name].get(one, 0) + 1
    return counts


def require_data_set(root: Path) -> Manifest:
    """The data set in a folder.

    Raises:
        UserError: there is none.
    """
    return Manifest(root)
