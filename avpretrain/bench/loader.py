"""How fast clips are decoded and delivered: by a bare loop (the bound), by the loader, by one that feeds steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch

from avpretrain.bench.step import StepBench, StepShape
from avpretrain.bench.timing import Stopwatch
from avpretrain.config.model import InputConfig
from avpretrain.config.schedules import Step
from avpretrain.config.train import DataConfig
from avpretrain.core.errors import UserError
from avpretrain.data.container import DecodeError
from avpretrain.data.decode import decode_audio
from avpretrain.data.features import Features
from avpretrain.data.read.clips import ClipSet, Encoded, Sample, decode_window
from avpretrain.data.read.collate import Collate, random_window, training_short_side
from avpretrain.data.read.dataset import process_context, train_loader
from avpretrain.data.read.sampler import Order
from avpretrain.data.read.slots import SlotBatch
from avpretrain.data.read.storage import StorageError
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.curriculum import phase_at

SETTLE = 2
"""Batches a loader process delivers before the clock starts."""
HELD_BYTES = 256 << 20
HELD_CLIPS = 256
"""What each process of the bare loop holds in memory, at most."""


@dataclass(frozen=True)
class Bench:
    """What is measured: a config's data and input, in batches as training takes them."""

    cfg: TrainConfig
    clips: int
    """Clips to deliver in each round of each part."""

    @property
    def workers(self) -> int:
        return max(1, self.cfg.data.num_workers)

    @property
    def batch_size(self) -> int:
        return self.cfg.schedule.batch.size

    @property
    def warmup(self) -> int:
        """Batches before the clock starts: every process has started and delivered."""
        return SETTLE * self.workers

    def steps(self) -> list[Step]:
        """A plan of equal batches that delivers `clips` after the warm-up."""
        count = self.warmup + -(-self.clips // self.batch_size)
        last, lr = phase_at(1.0, self.cfg.schedule), self.cfg.optim.lr
        return [Step(i, i * self.batch_size, self.batch_size, lr, last) for i in range(count)]


# --- the bound -------------------------------------------------------------------------------------------------------


_together: Any = None
"""In a process of the bare loop: the barrier at which all of them start their clocks."""


def _join(barrier: Any) -> None:
    global _together
    _together = barrier
    torch.set_num_threads(1)


def _decode_only(bench: Bench, process: int) -> float:
    """Decodes clips held in memory, as often as asked; clips/s, or 0 where none decodes."""
    input = bench.cfg.model.input
    ready = _hold(bench, process)
    _together.wait(timeout=3600)
    started = time.perf_counter()
    for i in range(bench.clips // bench.workers if ready else 0):
        encoded, at = ready[i % len(ready)]
        decode_window(encoded, input, 0, at, training_short_side(input))
    return bench.clips // bench.workers / (time.perf_counter() - started) if ready else 0.0


def _hold(bench: Bench, process: int) -> list[tuple[Encoded, tuple[float, float]]]:
    """Encoded clips that decode, and the windows to take of them."""
    data = bench.cfg.data
    clips = ClipSet(data.shards, data.split, data.cache_dir)
    order = Order(clips.shard_sizes, data.shuffle_window, bench.cfg.seed)
    ready, size = [], 0
    for position in range(process, len(order), bench.workers):
        place = order.place(position)
        try:
            encoded = clips.encoded(order.row(place))
            decode_window(encoded, bench.cfg.model.input, 0)
        except (DecodeError, StorageError):
            continue
        ready.append((encoded, random_window(order.sample_seed(place))))
        size += len(encoded.media.video) + len(encoded.media.audio)
        if size > HELD_BYTES or len(ready) >= HELD_CLIPS:
            break
    return ready


def bare_decode(bench: Bench) -> float:
    """Clips/s of as many processes as the loader has, each decoding clips from memory in a plain loop.

    Raises:
        UserError: a process found no clip that decodes.
    """
    context = process_context()
    barrier = context.Barrier(bench.workers)
    with ProcessPoolExecutor(bench.workers, context, _join, (barrier,)) as pool:
        rates = list(pool.map(_decode_only, [bench] * bench.workers, range(bench.workers)))
    if not all(rates):
        raise UserError("too few clips decode to measure their decoding; avpretrain inspect --verify tells why")
    return sum(rates)


# --- the loader ------------------------------------------------------------------------------------------------------


def memory() -> dict[str, Any]:
    """Resident bytes of this process, and of each of its descendants that is a loader process."""
    here = psutil.Process()
    children = sorted((p.memory_info().rss for p in here.children(recursive=True)), reverse=True)
    return {"main": here.memory_info().rss, "children": children, "total": here.memory_info().rss + sum(children)}


def run_loader(
    bench: Bench, each: Callable[[Any], None], progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Delivers batches to `each`, and says how fast, how long it waited, and what memory was held at both ends."""
    steps = bench.steps()
    batches = train_loader(bench.cfg.data, bench.cfg.model.input, bench.cfg.seed, steps)
    delivered = failed = 0
    waited = 0.0
    started = asked = time.perf_counter()
    start_memory = end_memory = memory()
    with batches:
        for number, batch in enumerate(batches):
            waited += time.perf_counter() - asked
            each(batch)
            if number >= bench.warmup:
                delivered, failed = delivered + len(batch), failed + batch.failed
                progress(delivered)
            if number == bench.warmup - 1:
                start_memory, waited = memory(), 0.0
                started = time.perf_counter()
            asked = time.perf_counter()
            if number == len(steps) - 1:  # the loader processes are still there
                end_memory = memory()
    seconds = asked - started
    return {
        "clips": delivered,
        "failed": failed,
        "seconds": seconds,
        "clips_per_second": delivered / seconds,
        "wait_share": waited / seconds,
        "memory_start": start_memory,
        "memory_end": end_memory,
    }


def alternate(bench: Bench, rounds: int, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """The bare loop and the loader in turn, round by round, so that a machine whose speed drifts bears on both alike.

    Args:
        progress: takes the clips that the loader has delivered over all rounds.

    Returns:
        each round's figures, and the median over rounds of either speed and of the loader's share of bare decoding.
    """
    done: list[dict[str, Any]] = []
    for _ in range(rounds):
        bare, before = bare_decode(bench), sum(r["loader"]["clips"] for r in done)
        loader = run_loader(bench, lambda _: None, partial(_ahead, progress, before))
        done.append({"bare": bare, "loader": loader, "share": loader["clips_per_second"] / bare})
    return {
        "bare_decode_clips_per_second": statistics.median(r["bare"] for r in done),
        "loader_clips_per_second": statistics.median(r["loader"]["clips_per_second"] for r in done),
        "loader_share_of_bare_decode": statistics.median(r["share"] for r in done),
        "rounds": done,
    }


def _ahead(progress: Callable[[int], None], before: int, count: int) -> None:
    progress(before + count)


def feed_steps(bench: Bench, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """The loader feeding real training steps: features, model, optimiser."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = Features(bench.cfg.model.input, bench.cfg.data.augment).to(device)
    trained = StepBench(bench.cfg, device)
    schedule = bench.cfg.schedule
    phase = StepShape(bench.batch_size, schedule.audio_mask_ratio.end, schedule.video_mask_ratio.end)

    def each(raw: Any) -> None:
        trained.step(features(raw.to(device)), phase)
        if device.type == "cuda":
            torch.cuda.synchronize()  # else waiting for the device would count as waiting for data, one batch later

    return run_loader(bench, each, progress)


# --- where time goes -------------------------------------------------------------------------------------------------


def stages(data: DataConfig, input: InputConfig, seed: int, count: int = 200) -> dict[str, float]:
    """Milliseconds a clip of each part of a loader process's work, measured in this process."""
    clips = ClipSet(data.shards, data.split, data.cache_dir)
    order = Order(clips.shard_sizes, data.shuffle_window, seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    watch = Stopwatch()
    samples = []
    for position in range(count):
        place = order.place(position)
        row, at = order.row(place), random_window(order.sample_seed(place))
        watch.lap("order")
        try:
            encoded = clips.encoded(row)
            watch.lap("read")
            if encoded.media.audio:
                decode_audio(encoded.media.audio, input.sample_rate)
            watch.lap("decode_audio")
            samples.append(decode_window(encoded, input, 0, at, training_short_side(input), "video"))
            watch.lap("decode_video")
        except (DecodeError, StorageError):
            watch.lap("failed")
    collate = Collate(input, shared=True)
    batches = [samples[start : start + 32] for start in range(0, len(samples), 32)]
    for batch in batches[:1]:
        _collate(collate, batch)  # loader processes use their memory again; only the first batches need fresh
    collating = Stopwatch()
    for batch in batches:
        _collate(collate, batch)
    collating.lap("collate")
    torch.set_num_threads(threads)
    spent = {**watch.spent, **collating.spent}
    return {name: 1000 * seconds / max(1, len(samples)) for name, seconds in spent.items()}


def _collate(collate: Collate, samples: Sequence[Sample]) -> None:
    """Makes a batch that nobody holds."""
    batch = collate(samples)
    if isinstance(batch, SlotBatch):
        batch.slot[0] = 0
