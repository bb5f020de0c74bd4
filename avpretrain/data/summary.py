"""What `dataset.json` says of a data set: counts, labels, log-mel statistics, and the fingerprint."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from avpretrain.data.log_mel_sums import LogMelSums
from avpretrain.data.manifest import FORMAT, Clip, Shard
from avpretrain.data.splits import role_of

MAX_DISTINCT = 10_000
"""Labels with more distinct values than this are free text; dataset.json lists none of their values."""
EMPTY = LogMelSums(0, 0, 0.0, 0.0)


def fingerprint(clips: Iterable[Clip], splits: Sequence[str]) -> str:
    """Order-free hash of a data set: two sets have the same one if they hold the same clips.

    For each clip: SHA-256 of the text "MEDIA_SHA256\\nSPLIT\\nLABELS_JSON" as a number; their sum modulo 2**256, in 64
    hexadecimal digits. Keys, paths, licences and the place in the shards do not enter.

    Args:
        clips: rows of the manifest.
        splits: the split of each shard.
    """
    total = 0
    for clip in clips:
        text = f"{clip.sha256}\n{splits[clip.shard]}\n{clip.labels}"
        total += int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    return f"{total % (1 << 256):064x}"


def label_values(clips: Iterable[Clip]) -> dict[str, list[str]]:
    """Each label's distinct values, sorted; none for free text."""
    distinct: dict[str, set[str]] = {}
    for text in {clip.labels for clip in clips}:
        for name, value in json.loads(text).items():
            distinct.setdefault(name, set()).update([value] if isinstance(value, str) else value)
    return {name: sorted(values) if len(values) <= MAX_DISTINCT else [] for name, values in sorted(distinct.items())}


def log_mel_summary(sums: Mapping[str, LogMelSums]) -> dict[str, Any]:
    """Mean and standard deviation over the training splits, or all where there is none, with the sums themselves."""
    chosen = [split for split in sorted(sums) if role_of(split) == "train"] or sorted(sums)
    total = functools.reduce(LogMelSums.plus, (sums[split] for split in chosen), EMPTY)
    mean = total.total / total.values if total.values else 0.0
    variance = total.squares / total.values - mean**2 if total.values else 0.0
    return {
        "mean": mean,
        "std": math.sqrt(max(0.0, variance)),
        "clips": total.clips,
        "splits": chosen,
        "sums": {split: list(sums[split]) for split in sorted(sums)},
    }


def summarise(
    name: str, shards: Sequence[Shard], clips: Sequence[Clip], sums: Mapping[str, LogMelSums], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `dataset.json`, sealed by a checksum over itself."""
    info = {
        "format": FORMAT,
        "name": name,
        "clips": len(clips),
        "hours": sum(clip.duration for clip in clips) / 3600,
        "bytes": sum(shard.bytes for shard in shards),
        "fingerprint": fingerprint(clips, [shard.split for shard in shards]),
        "log_mel": log_mel_summary(sums),
        "labels": label_values(clips),
        **more,
        "shards": [{field: getattr(shard, field) for field in Shard.__slots__} for shard in shards],
    }
    return {**info, "checksum": checksum(info)}


def checksum(info: Mapping[str, Any]) -> str:
    """SHA-256 of a summary without its own checksum."""
    content = {key: value for key, value in info.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
