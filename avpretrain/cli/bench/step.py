"""`avpretrain bench step`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from avpretrain.cli.shared.arguments import parse
from avpretrain.cli.shared.config_first import data_as_shards
from avpretrain.cli.shared.places import require_file
from avpretrain.config.train import DataConfig
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import Console
from avpretrain.methods.diffmavil.config import TrainConfig, load_config


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is measured."""

    configs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CONFIG ...")] = field(default=())
    """YAML files or names of presets."""
    batch_size: int = 128
    """Clips on this device where the masking ratio has reached its end; other phases follow the config's batch rule."""
    repeats: int = 15
    """Timed steps a phase."""
    compile: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: as each config says)")] = False
    """Compile the model, in place of what the configs say."""
    cuda_graphs: Literal["auto", "always", "never"] | None = None
    """Each phase captured as one CUDA graph, or launched kernel by kernel, in place of what the configs say."""
    ledger: bool = False
    """Measure, after the configs, all variants of `avpretrain ledger` at the size of the first; a phase that several
    share is measured once."""
    checkpointing_price: bool = False
    """Measure each config without and with activation checkpointing, and say what it costs and saves."""
    data: DataConfig = field(default_factory=DataConfig)
    """With --data.shards: measure as well the share of time that steps wait for clips of these shards, at the
    curriculum's end."""
    out: Path | None = None
    """Write the numbers as JSON, anew after each config."""
    json: bool = False
    """Print the numbers as JSON."""


def run(args: Sequence[str]) -> None:
    """Measure training steps of one or several configs, in each phase of their curriculum.

    Seconds, clips/s, FLOP/s by the analytic count, the share of the matmul peak measured on the same device, peak
    memory, and the time split by component (patches, encoders, fusion, decoders, masks + noise + losses, optimizer;
    forward and backward together). Reads configs; no data (clips are noise), unless --data.shards is given. Writes
    nothing but --out. Takes on a GPU about half a minute a phase with compilation, a few seconds without.
    """
    args = [data_as_shards(text) for text in args]
    given, other = (
        parse(Arguments, args, "avpretrain bench step", Arguments(compile=value), run.__doc__)
        for value in (False, True)
    )
    compiled = given.compile if given.compile == other.compile else None  # it differs where the line doesn't say
    if not given.configs or given.batch_size < 1 or given.repeats < 1:
        raise UsageError("give at least one config, and a batch size and repeats of at least 1: bench step CONFIG ...")
    require_file(given.out)
    chosen = [_config(name, given, compiled) for name in given.configs]
    names = [cfg.name for cfg in chosen]
    if len(set(names)) < len(names):
        raise UsageError(f"two configs have one name: {', '.join(names)}; rename a file")
    answer = measure({cfg.name: cfg for cfg in chosen}, given)
    if given.out is not None:
        write_json(given.out, answer)
    if given.json:
        print(json.dumps(answer, indent=2))


def measure(configs: dict[str, TrainConfig], given: Arguments) -> dict[str, Any]:
    """Steps of every config, what checkpointing costs them, and how long they wait for data, as asked for."""
    from avpretrain.bench.step import bench_steps, checkpointing_price, with_checkpointing
    from avpretrain.report.ledger import variants_of

    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    others = variants_of(next(iter(configs.values()))) if given.ledger else {}
    measured = {**(with_checkpointing(configs) if given.checkpointing_price else configs), **others}
    keep = partial(write_json, given.out) if given.out else lambda _: None
    answer = bench_steps(measured, given.batch_size, given.repeats, say, keep)
    if given.checkpointing_price:
        answer["activation_checkpointing"] = checkpointing_price(answer["variants"])
    if given.data.shards:
        answer["loader"] = {name: _waiting(cfg, given) for name, cfg in configs.items()}
        for name, row in answer["loader"].items():
            say(f"{name}  fed from shards: {row['clips_per_second']:.4g} clips/s, {row['wait_share']:.1%} waiting")
    return answer


def _waiting(cfg: TrainConfig, given: Arguments) -> dict[str, Any]:
    """Training steps fed by the loader, with the last phase's masking ratios and batch."""
    from avpretrain.bench.loader import Bench, feed_steps
    from avpretrain.data.read.clips import ClipSet
    from avpretrain.methods.diffmavil.method import resolve

    clips = ClipSet(given.data.shards, given.data.split, given.data.cache_dir)
    size = given.batch_size
    batch = dataclasses.replace(cfg.schedule.batch, size=size, multiple=1, max_size=max(size, 1 << 16))
    schedule = dataclasses.replace(cfg.schedule, batch=batch)
    cfg = resolve(dataclasses.replace(cfg, data=given.data, schedule=schedule), clips)
    return feed_steps(Bench(cfg, given.repeats * size))


def _config(name: str, given: Arguments, compiled: bool | None) -> TrainConfig:
    cfg = load_config(name)
    changes: dict[str, Any] = {"compile": compiled, "cuda_graphs": given.cuda_graphs}
    run = dataclasses.replace(cfg.run, **{key: value for key, value in changes.items() if value is not None})
    return dataclasses.replace(cfg, run=run)
