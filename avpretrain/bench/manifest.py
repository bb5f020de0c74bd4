"""What a huge data set costs before the first step, and each loader process; on a generated manifest."""

from __future__ import annotations

import functools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from avpretrain.bench.timing import Stopwatch
from avpretrain.config.schedules import cost_by_rule, plan, total_samples
from avpretrain.core.files import read_json
from avpretrain.data.manifest import FORMAT, SCHEMA, check_summary
from avpretrain.data.place import DATASET_NAME, MANIFEST_NAME
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.read.dataset import process_context
from avpretrain.data.read.sampler import Order
from avpretrain.data.read.storage import open_store
from avpretrain.methods.diffmavil.config import load_config
from avpretrain.methods.diffmavil.cost import cost_of
from avpretrain.methods.diffmavil.curriculum import phase_at

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


def measure_manifest(
    root: Path, window: int = 16, visits: int = 2000, config: str = "base_diffmavil"
) -> dict[str, Any]:
    """What a huge data set costs a machine before the first step, and each loader process.

    Seconds to read the list of its shards, to fetch the manifest from a web server on this machine, to open and check
    it (each rank), to open it again (each loader process), to find the next sample in the middle of an epoch, and to
    plan all steps of a run; memory of a rank's plan and of a loader process.

    Each part is measured in a process of its own, forked from the loaders' server, so that nothing is warm but the page
    cache.

    Processor seconds are those of all threads; on a machine that others use, too, they say more than the clock.

    Args:
        config: whose steps are planned.
    """
    parts = (
        (_listing, (root,)),
        (_fetch, (root,)),
        (_open, (root,)),
        (_visit, (root, window, visits)),
        (_plan, (root, config)),
    )
    answer: dict[str, Any] = {}
    for part, arguments in parts:
        with ProcessPoolExecutor(1, process_context()) as pool:
            answer |= pool.submit(part, *arguments).result()
    return {**answer, "resume_seconds": answer["open_seconds"] + answer["seek_seconds"]}


def _listing(root: Path) -> dict[str, Any]:
    watch = Stopwatch()
    summary = read_json(root / DATASET_NAME, "summary")
    check_summary(summary)
    watch.lap("listing")
    sizes = {name: (root / name).stat().st_size for name in (DATASET_NAME, MANIFEST_NAME)}
    return {
        "rows": summary["clips"],
        "shards": len(summary["shards"]),
        "manifest_bytes": sizes[MANIFEST_NAME],
        "summary_bytes": sizes[DATASET_NAME],
        "listing_seconds": watch.spent["listing"],
    }


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def _fetch(root: Path) -> dict[str, Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(dir=root) as cache:
        store = open_store(f"http://127.0.0.1:{server.server_address[1]}", cache)
        watch = Stopwatch()
        store.manifest_folder()
        watch.lap("first")
        store.manifest_folder()
        watch.lap("again")
    server.shutdown()
    return {"fetch_seconds": watch.spent["first"], "fetch_again_seconds": watch.spent["again"]}


def _open(root: Path) -> dict[str, Any]:
    """As a rank does, which checks every row."""
    before, watch, started = _memory(), Stopwatch(), time.process_time()
    clips = ClipSet([str(root)])
    watch.lap("open")
    after = _memory()
    assert len(clips)
    return {
        "open_seconds": watch.spent["open"],
        "open_processor_seconds": time.process_time() - started,
        "open_own_bytes": after["own"] - before["own"],
    }


def _plan(root: Path, config: str) -> dict[str, Any]:
    """The steps that a rank plans before it trains."""
    cfg = load_config(config)
    rows = read_json(root / DATASET_NAME, "summary")["clips"]
    total = total_samples(cfg.schedule, rows)
    cost = cost_by_rule(cfg.schedule.batch, functools.partial(cost_of, cfg.model))
    before, watch, started = _memory(), Stopwatch(), time.process_time()
    steps = list(plan(cfg.schedule, cfg.optim, total, functools.partial(phase_at, cfg=cfg.schedule), cost))
    watch.lap("plan")
    return {
        "plan_config": config,
        "plan_clips": total,
        "plan_steps": len(steps),
        "plan_seconds": watch.spent["plan"],
        "plan_processor_seconds": time.process_time() - started,
        "plan_own_bytes": _memory()["own"] - before["own"],
    }


def _visit(root: Path, window: int, visits: int) -> dict[str, Any]:
    """As a loader process does, which is told what the rank has checked."""
    watch = Stopwatch()
    before = _memory()
    watch.lap("start")
    clips = ClipSet([str(root)], folders=[root], known_bad=[{}])
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
        "loader_open_seconds": watch.spent["open"],
        "seek_seconds": watch.spent["seek"],
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
