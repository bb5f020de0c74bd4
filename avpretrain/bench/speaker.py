"""What a frame costs an active speaker detector on a stream, in time and memory, against how much past it keeps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avpretrain.core.errors import UsageError
from avpretrain.measures.results import Result
from avpretrain.methods.speaker.config import FPS, FRAME_SAMPLES, SpeakerModelConfig, with_fusion
from avpretrain.methods.speaker.fusion import Chain
from avpretrain.methods.speaker.model import SpeakerModel
from avpretrain.methods.speaker.streaming import Stream
from avpretrain.nn.banded import BlockStream

COPIED = 16 << 20
"""float32 values that are copied to measure memory's speed: more than a cache holds."""
PRODUCT = 1024
"""Size of the matrices whose product measures the speed of arithmetic."""


@dataclass(frozen=True, kw_only=True)
class StreamCost(Result):
    """Of one model, on one stream that has run long enough for its past to be full."""

    kind: str
    past: int | None
    """Frames of past of each block; none = has no such number."""
    parameters: int
    delay_frames: int
    """By which output comes late."""
    delay_ms: float
    """The same in time, without the time to compute."""
    state_bytes: int
    """Measured: what is kept between frames."""
    formula_bytes: int | None
    """Keys and values: 2 x width x 4 for each of depth x (past + 1) rows, and of `future` rows in the first block."""
    frame_ms: float
    """Median time of the clock to score the next frame: encoders, fusion and head."""
    frame_cpu_ms: float
    """Median time of the processor for it, all threads together; what else the machine does hardly shows in it."""
    fusion_cpu_ms: float
    """The part of fusion in it, measured by itself."""
    realtime_streams: float
    """Streams of 25 frames a second that one such process keeps up with, by the clock."""
    read_bytes: int
    """Keys and values that a frame reads."""
    attention_flops: int
    """Of scores and sums over the past: 4 x depth x past x width."""


@dataclass(frozen=True, kw_only=True)
class SpeakerBench(Result):
    """All that was measured."""

    threads: int
    memory_gb_per_second: float
    """Bytes read and written by a copy of a large array, by the processor's time of one thread."""
    gflops_per_second: float
    """Of a product of two matrices, in the same time."""
    costs: tuple[StreamCost, ...]

    def past_ns(self) -> float | None:
        """Nanoseconds of the processor that one more frame of past costs: the slope of a line fitted to all pasts."""
        banded = [(cost.past, cost.fusion_cpu_ms) for cost in self.costs if cost.kind == "banded"]
        points = [(past, spent) for past, spent in banded if past is not None]
        if len({past for past, _ in points}) < 2:
            return None
        pasts, spent_ms = np.array(points, np.float64).T
        return 1e6 * float(np.polyfit(pasts, spent_ms, 1)[0])

    def bounds_ns(self) -> tuple[float, float] | None:
        """What one more frame of past would cost at the speed of memory, and at that of arithmetic, in nanoseconds."""
        longest = max((c for c in self.costs if c.past), key=lambda c: c.past or 0, default=None)
        if longest is None or not longest.past:
            return None
        by_memory = longest.read_bytes / longest.past / self.memory_gb_per_second
        return by_memory, longest.attention_flops / longest.past / self.gflops_per_second

    def to_json(self) -> dict[str, Any]:
        """Its fields, and what follows from them."""
        bounds = self.bounds_ns()
        return {
            **super().to_json(),
            "past_ns": self.past_ns(),
            "bound_memory_ns": bounds and bounds[0],
            "bound_arithmetic_ns": bounds and bounds[1],
        }


def bench_speaker(
    cfg: SpeakerModelConfig,
    pasts: Sequence[int] = (0, 8, 32, 128, 512, 2048, 8192),
    kinds: Sequence[str] = ("gru", "frame"),
    frames: int = 100,
    say: Callable[[str], None] = lambda line: None,
) -> SpeakerBench:
    """Measures on the CPU, with random weights, which cost the same.

    Args:
        cfg: the model; its past is replaced.
        pasts: frames of past of each block of banded attention.
        kinds: other kinds of fusion.
        frames: that are timed; the median counts.
        say: called with what is measured next.

    Raises:
        UsageError: a past has no end, or a kind can't run on a stream.
    """
    if min(pasts, default=0) < 0:
        raise UsageError(f"pasts are numbers of frames, got {min(pasts)}; unlimited past has no one cost")
    models = [with_fusion(cfg, kind="banded", past=past, hidden=0) for past in pasts]
    models += [with_fusion(cfg, kind=kind, past=max(1, cfg.fusion.past), hidden=0) for kind in kinds]
    for model in models[:1]:
        stream_cost(model, frames)  # what is measured first in a process is slow, and is left out
    costs = []
    for model in models:
        say(f"{model.fusion.kind}, past {model.fusion.past}" if model.fusion.kind == "banded" else model.fusion.kind)
        costs.append(stream_cost(model, frames))
    source, target = torch.ones(COPIED), torch.empty(COPIED)
    copied = 2 * source.numel() * source.element_size() / (median_ms(lambda: target.copy_(source), 7, 2)[1] / 1000)
    left, right = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
    multiplied = 2 * PRODUCT**3 / (median_ms(lambda: left @ right, 7, 2)[1] / 1000)
    return SpeakerBench(
        threads=torch.get_num_threads(),
        memory_gb_per_second=copied / 1e9,
        gflops_per_second=multiplied / 1e9,
        costs=tuple(costs),
    )


@torch.no_grad()
def stream_cost(cfg: SpeakerModelConfig, frames: int = 100, warmup: int = 10) -> StreamCost:
    """Measures one model, frame by frame.

    Raises:
        UsageError: it can't run on a stream.
    """
    model = SpeakerModel(cfg).eval()
    size, banded = cfg.encoder.face_size, cfg.fusion.kind == "banded"
    faces = torch.randint(256, (1, size, size), dtype=torch.uint8)
    waveform, fused = 0.1 * torch.randn(FRAME_SAMPLES), torch.randn(1, 1, cfg.width)
    stream, fusion = Stream(model), model.fusion.stream()
    for chain in (stream.fusion, fusion):
        for part in chain.parts if isinstance(chain, Chain) else ():
            if isinstance(part, BlockStream):
                part.ring.written = part.ring.rows  # as if so many frames had come
    whole = median_ms(lambda: stream.push(faces, waveform), frames, warmup)
    alone = median_ms(lambda: fusion.push(fused), frames, warmup)
    past, delay = cfg.fusion.past if banded else None, stream.delay_frames
    rows = cfg.fusion.depth * ((past or 0) + 1) + cfg.fusion.future
    return StreamCost(
        kind=cfg.fusion.kind,
        past=past,
        parameters=sum(p.numel() for p in model.parameters()),
        delay_frames=delay,
        delay_ms=1000 * delay / FPS,
        state_bytes=stream.state_bytes,
        formula_bytes=2 * rows * cfg.width * 4 if banded else None,
        frame_ms=whole[0],
        frame_cpu_ms=whole[1],
        fusion_cpu_ms=alone[1],
        realtime_streams=1000 / FPS / whole[0],
        read_bytes=(past or 0) * cfg.past_frame_bytes if banded else 0,
        attention_flops=4 * cfg.fusion.depth * (past or 0) * cfg.width,
    )


def median_ms(work: Callable[[], Any], repeats: int, warmup: int) -> tuple[float, float]:
    """Median milliseconds of `work()`: of the clock, and of the processor over all threads."""
    clock, processor = [], []
    for _ in range(warmup + repeats):
        started = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
    return 1000 * statistics.median(clock[warmup:]), 1000 * statistics.median(processor[warmup:])
