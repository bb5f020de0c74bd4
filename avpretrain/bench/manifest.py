"""How fast a huge data set opens and resumes, and what memory it takes in a loader process; on a generated manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from avpretrain.bench.timing import Stopwatch
from avpretrain.data.manifest import FORMAT, SCHEMA
from avpretrain.data.place import DATASET_NAME, MANIFEST_NAME
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.read.dataset import process_context
from avpretrain.data.read.sampler import Order

CLIP_BYTES = 500_000


def write_rows(root: Path, rows: int, per_shard: int = 500) -> None:
    """A data set of `rows` clips without its tars: a manifest as large as a real one."""
    root.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(root / MANIFEST_NAME), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for first in range(0, rows, 100_000):
            writer.write_batch(_batch(first, min(rows, first + 100_000), per_shard))
    starts = range(0, rows, per_shard)
    shards = [
        {
            "name": f"train-{i:06d}.tar",
            "split": "train",
            "clips": min(per_shard, rows - first),
            "bytes": min(per_shard, rows - first) * CLIP_BYTES,
            "sha256": "0" * 64,
        }
        for i, first in enumerate(starts)
    ]
    summary = {
        "format": FORMAT,
        "name": "generated",
        "clips": rows,
        "hours": rows / 360,
        "bytes": rows * CLIP_BYTES,
        "shards": shards,
        "fingerprint": "0" * 64,
        "log_mel": {"mean": -7.0, "std": 4.0, "clips": rows},
        "labels": {},
        "created_with": {},
    }
    (root / DATASET_NAME).write_text(json.dumps(summary))


def _batch(first: int, stop: int, per_shard: int) -> pa.RecordBatch:
    rows = range(first, stop)
    columns: dict[str, list[Any]] = {
        "key": [f"clip-{row:012d}-0000" for row in rows],
        "shard": [row // per_shard for row in rows],
        "video_ext": ["mp4"] * len(rows),
        "video_offset": [512 + row % per_shard * CLIP_BYTES for row in rows],
        "video_length": [350_000] * len(rows),
        "audio_ext": ["flac"] * len(rows),
        "audio_offset": [351_744 + row % per_shard * CLIP_BYTES for row in rows],
        "audio_length": [140_000] * len(rows),
        "duration": [10.0] * len(rows),
        "fps": [8.0] * len(rows),
        "width": [455] * len(rows),
        "height": [256] * len(rows),
        "labels": [json.dumps({"class": f"class {row % 527}"}) for row in rows],
        "source": [f"videos/{row % 1000:03d}/{row:012d}.mp4" for row in rows],
        "start": [0.0] * len(rows),
        "license": ["CC-BY-4.0"] * len(rows),
        "sha256": [f"{row:064x}" for row in rows],
    }
    return pa.record_batch(columns, schema=SCHEMA)


def measure_manifest(root: Path, window: int = 16, visits: int = 2000) -> dict[str, Any]:
    """Seconds to open the set and to find the next sample in the middle of an epoch; memory of a fresh loader process.

    Measured in a process of its own, forked from the loaders' server, so that nothing is warm but the page cache.
    """
    with ProcessPoolExecutor(1, process_context()) as pool:
        return pool.submit(_visit, str(root), window, visits).result()


def _visit(root: str, window: int, visits: int) -> dict[str, Any]:
    watch = Stopwatch()
    before = _memory()
    watch.lap("start")
    clips = ClipSet([root])
    watch.lap("open")
    order = Order(clips.shard_sizes, window, 0)
    middle = len(clips) * 3 + len(clips) // 2 + 1
    clips.clip(order.row(order.place(middle)))
    watch.lap("seek")
    for position in _spread(middle, len(clips), visits):
        clips.clip(order.row(order.place(position)))
    watch.lap("visits")
    after = _memory()
    return {
        "rows": len(clips),
        "shards": len(clips.shard_sizes),
        "manifest_bytes": (Path(root) / MANIFEST_NAME).stat().st_size,
        "open_seconds": watch.spent["open"],
        "seek_seconds": watch.spent["seek"],
        "resume_seconds": watch.spent["open"] + watch.spent["seek"],
        "milliseconds_a_row_in_another_window": 1000 * watch.spent["visits"] / visits,
        "own_bytes": after["own"] - before["own"],
        "shared_bytes": after["shared"] - before["shared"],
    }


def _spread(start: int, clips: int, visits: int) -> Iterator[int]:
    """Positions all over an epoch, each far from the one before."""
    return (start // clips * clips + (start + i * 7_368_787) % clips for i in range(visits))


def _memory() -> dict[str, int]:
    """Bytes that are this process's own, and resident pages of files, which the system shares and can drop."""
    info = psutil.Process().memory_info()
    shared = getattr(info, "shared", 0)
    return {"own": info.rss - shared, "shared": shared}
