"""How fast a training step is: the real model and optimiser, compared with the matmul peak of the same machine."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avpretrain.bench.components import component_seconds
from avpretrain.config.schedules import batch_size_for, cost_by_rule
from avpretrain.core.provenance import environment
from avpretrain.data.batch import AVBatch
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.cost import clip_flops, cost_of
from avpretrain.methods.diffmavil.curriculum import MaskRatios, phases_of
from avpretrain.methods.diffmavil.example import random_batch
from avpretrain.methods.load import make_method
from avpretrain.training.bare_step import BareStep
from avpretrain.training.build import why_uncaptured
from avpretrain.training.graphs import WARM_UP


@dataclass(frozen=True)
class StepShape:
    """One point of the curriculum: what a compiled step is specialised on."""

    batch_size: int
    """On one device."""
    audio_ratio: float
    video_ratio: float

    @property
    def ratios(self) -> MaskRatios:
        return MaskRatios(self.audio_ratio, self.video_ratio)


def median_seconds(work: Callable[[], Any], warmup: int, repeats: int) -> float:
    """Median seconds of `work()`, the clock read while the device is idle."""
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds = []
    for _ in range(warmup + repeats):
        sync()
        started = time.perf_counter()
        work()
        sync()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[warmup:])


def matmul_peak(device: torch.device, size: int = 8192) -> float:
    """FLOP/s of a plain square product of random matrices in the training precision: what the card can do at best."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = size if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, warmup=5, repeats=20)


class StepBench:
    """A model and its optimiser, ready to be timed at any phase.

    Args:
        cfg: its model, optimiser, precision, compilation and checkpointing are what is timed; no data are read.
    """

    def __init__(self, cfg: TrainConfig, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        self.captured = not why_uncaptured(cfg.run, device)
        self.bare = BareStep(make_method(cfg), device, self.captured)

    def step(self, batch: AVBatch, phase: StepShape) -> dict[str, Tensor]:
        """A training step at `phase`."""
        return self.bare.step(batch, phase.ratios)

    def components(self, phase: StepShape, repeats: int = 5) -> dict[str, dict[str, float]]:
        """Seconds of each component in a step at `phase`, its share, and its FLOP/s where FLOPs are counted for it."""
        batch = random_batch(self.cfg.model.input, phase.batch_size, self.device)
        spent = component_seconds(self.bare, batch, phase.ratios, repeats)
        counted = clip_flops(self.cfg.model, phase.audio_ratio, phase.video_ratio, phase.batch_size).components
        split = {}
        for name, seconds in spent.items():
            split[name] = {"seconds": seconds, "share": seconds / sum(spent.values())}
            flops = counted.get("patch_embed" if name == "patches" else name)
            if flops is not None and seconds:
                split[name]["flops_per_second"] = flops.training * phase.batch_size / seconds
        return split

    def measure(self, phase: StepShape, warmup: int = 5, repeats: int = 20) -> dict[str, Any]:
        """Seconds, clips/s, FLOP/s and memory of a step at `phase`; `first_step_seconds` has compilation in it."""
        batch = random_batch(self.cfg.model.input, phase.batch_size, self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        first = median_seconds(lambda: self.step(batch, phase), warmup=0, repeats=1)
        warmup = max(warmup, WARM_UP + 2) if self.captured else warmup  # the capture is among them
        seconds = median_seconds(lambda: self.step(batch, phase), warmup, repeats)
        flops = clip_flops(self.cfg.model, phase.audio_ratio, phase.video_ratio, phase.batch_size).training
        return {
            "batch_size": phase.batch_size,
            "audio_ratio": phase.audio_ratio,
            "video_ratio": phase.video_ratio,
            "cuda_graph": self.captured,
            "seconds": seconds,
            "first_step_seconds": first,
            "clips_per_second": phase.batch_size / seconds,
            "flops_per_clip": flops,
            "flops_per_second": flops * phase.batch_size / seconds,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0,
        }


def phases(cfg: TrainConfig, batch_size: int) -> list[StepShape]:
    """The phases of a curriculum, in order, with `batch_size` clips on the device in the last one."""
    batch = dataclasses.replace(cfg.schedule.batch, size=batch_size, multiple=math.gcd(8, batch_size))
    cost, ratios = cost_by_rule(batch, functools.partial(cost_of, cfg.model)), phases_of(cfg.schedule)
    return [StepShape(batch_size_for(pair, ratios[-1], batch, cost), pair.audio, pair.video) for pair in ratios]


def bench_steps(
    configs: Mapping[str, TrainConfig],
    batch_size: int,
    repeats: int,
    say: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures every phase of every config in one run, with the matmul peak before and after.

    A phase that an earlier config shares (equal model, execution, masking ratios and batch) is measured once. One that
    does not fit the memory has `out_of_memory` in place of figures.

    Args:
        say: takes a line of progress.
        keep: takes the answer so far after each config, so that a run cut short loses one config at most.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matmul_peak(device)
    say(f"matmul peak {peak / 1e12:.4g} TFLOP/s")
    answer = {"matmul_peak": peak, "matmul_peak_after": None, "repeats": repeats, "variants": {}, **environment()}
    done: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, cfg in configs.items():
        bench: StepBench | None = None
        rows = answer["variants"][name] = []
        for phase in phases(cfg, batch_size):
            run = cfg.run
            how = run.compile, run.activation_checkpointing, run.precision, run.cuda_graphs
            key = (cfg.model, how, phase)
            if key not in done:
                bench = bench or StepBench(cfg, device)
                done[key] = _measure_phase(bench, phase, repeats, peak)
            rows.append(done[key])
            at = f"batch {phase.batch_size}  ratio {phase.audio_ratio:g}/{phase.video_ratio:g}"
            say(f"{name}  {at}  {_said(done[key])}")
        keep(answer)
    answer["matmul_peak_after"] = matmul_peak(device)
    return answer


def _measure_phase(bench: StepBench, phase: StepShape, repeats: int, peak: float) -> dict[str, Any]:
    try:
        measured = bench.measure(phase, repeats=repeats)
        bench.bare.close()  # the memory of a graph is no other step's
        measured["components"] = bench.components(phase, min(repeats, 5))
    except torch.OutOfMemoryError:
        bench.bare.close()
        bench.bare.optimizer.zero_grad(set_to_none=True)
        return {**dataclasses.asdict(phase), "out_of_memory": True}
    measured["share_of_peak"] = measured["flops_per_second"] / peak
    return measured


def _said(measured: Mapping[str, Any]) -> str:
    if measured.get("out_of_memory"):
        return "out of memory"
    return (
        f"{measured['seconds'] * 1e3:.1f} ms  {measured['clips_per_second']:.4g} clips/s  "
        f"{measured['share_of_peak']:.1%} of peak  {measured['peak_memory_bytes'] / 2**30:.1f} GiB"
    )


CHECKPOINTED = "+activation_checkpointing"
"""Ends the name of a variant that recomputes its blocks."""


def with_checkpointing(configs: Mapping[str, TrainConfig]) -> dict[str, TrainConfig]:
    """Each config twice, without and with activation checkpointing, one after the other."""
    both = {}
    for name, cfg in configs.items():
        for ending, on in (("", False), (CHECKPOINTED, True)):
            run = dataclasses.replace(cfg.run, activation_checkpointing=on)
            both[name + ending] = dataclasses.replace(cfg, run=run)
    return both


def checkpointing_price(variants: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, float]]]:
    """What activation checkpointing multiplies the seconds and the peak memory of each phase by.

    Args:
        variants: as `bench_steps` measured the configs that `with_checkpointing` made.
    """
    price: dict[str, list[dict[str, float]]] = {}
    for name, rows in variants.items():
        for plain, checkpointed in zip(rows, variants.get(name + CHECKPOINTED, []), strict=False):
            if plain.get("out_of_memory") or checkpointed.get("out_of_memory"):
                continue
            row = {key: plain[key] for key in ("batch_size", "audio_ratio", "video_ratio")}
            row["seconds_times"] = checkpointed["seconds"] / plain["seconds"]
            if plain["peak_memory_bytes"]:  # not known of a CPU
                row["memory_times"] = checkpointed["peak_memory_bytes"] / plain["peak_memory_bytes"]
            price.setdefault(name, []).append(row)
    return price
