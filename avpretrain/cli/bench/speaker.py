"""`avpretrain bench speaker`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from avpretrain.cli.shared.arguments import bind
from avpretrain.cli.shared.places import require_file
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import say


def measure(
    config: str = "speaker_base",
    past: tuple[int, ...] = (0, 8, 32, 128, 512, 2048, 8192),
    frames: int = 100,
    threads: int = 1,
    out: Path | None = None,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measure what a frame costs an active speaker detector on a stream, on the CPU: milliseconds and bytes.

    Frames come one by one, to a stream whose past is full; weights are random. Reads nothing; writes nothing but --out.
    Takes less than a minute.

    Args:
        config: a preset or a YAML file of method speaker; its past is replaced.
        past: frames of past of each block of banded attention.
        frames: timed for each; the median counts.
        threads: of the CPU; 0 = torch's choice.
        out: write the numbers as JSON.
        json_: print the numbers as JSON.
    """
    require_file(out)
    if frames < 1 or threads < 0:
        raise UsageError(f"frames must be at least 1 and threads at least 0, got {frames} and {threads}")
    from avpretrain.methods.load import load_config
    from avpretrain.methods.speaker.config import SpeakerConfig

    cfg = load_config(config)
    if not isinstance(cfg, SpeakerConfig):
        raise UsageError(f"'{config}' is a config of method {cfg.method}; give one of method speaker")
    import torch

    from avpretrain.bench.speaker import bench_speaker
    from avpretrain.core.provenance import environment

    if threads:
        torch.set_num_threads(threads)
    found = bench_speaker(cfg.model, past, frames=frames)
    answer = {"config": cfg.name, **found.to_json(), **environment()}
    if out is not None:
        write_json(out, answer)
    if json_:
        print(json.dumps(answer, indent=2))
        return
    say(f"{'':<14}{'ms a frame':>12}{'CPU ms':>9}{'of fusion':>11}{'state KiB':>11}{'streams':>9}{'delay ms':>10}")
    for cost in found.costs:
        name = cost.kind if cost.past is None else f"{cost.kind} {cost.past}"
        say(
            f"{name:<14}{cost.frame_ms:>12.3f}{cost.frame_cpu_ms:>9.3f}{cost.fusion_cpu_ms:>11.3f}"
            f"{cost.state_bytes / 1024:>11.1f}"
            f"{cost.realtime_streams:>9.1f}{cost.delay_ms:>10.0f}"
        )
    per_frame, bounds = found.past_ns(), found.bounds_ns()
    if per_frame is not None and bounds is not None:
        say(f"a frame of past costs {per_frame:.0f} ns of CPU")
        say(f"  at the speed of memory     ({found.memory_gb_per_second:.1f} GB/s) it would be {bounds[0]:.0f}")
        say(f"  at the speed of arithmetic ({found.gflops_per_second:.0f} GFLOP/s) it would be {bounds[1]:.0f}")


def run(args: Sequence[str]) -> None:
    """Measures as the command line says."""
    bind(measure, args, "avpretrain bench speaker")()
