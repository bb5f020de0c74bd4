"""`avpretrain bench step`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from avpretrain.cli import parse
from avpretrain.config import TrainConfig
from avpretrain.configfile import load_config
from avpretrain.errors import UsageError
from avpretrain.files import write_json

HELP = """\
usage: avpretrain bench step CONFIG [CONFIG ...] [--batch-size N] [--repeats N] [--out FILE] [--json]

Measures training steps of one or several configs in one run, in each phase of their curriculum: seconds, clips/s,
FLOP/s by the analytic count, the share of the matmul peak measured on the same device, and peak memory.

reads   presets or YAML files; no data: clips are noise
writes  nothing, or with --out the JSON that --json prints
takes   on a GPU about half a minute a phase with compilation, a few seconds without

--batch-size N  clips on this device where the masking ratio has reached its end (128); other phases follow the
                config's batch rule
--repeats N     timed steps a phase (15)
--compile / --no-compile
                overrides the configs
--out FILE      write the numbers as JSON"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is measured."""

    configs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="CONFIG ...")] = field(default=())
    batch_size: int = 128
    repeats: int = 15
    compile: bool | None = None
    out: Path | None = None
    json: bool = False


def run(args: Sequence[str]) -> None:
    """Measures as the command line says."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    given = parse(Arguments, args, "avpretrain bench step", Arguments())
    if not given.configs or given.batch_size < 1 or given.repeats < 1:
        raise UsageError("give at least one config, and a batch size and repeats of at least 1: bench step CONFIG ...")
    configs = {name: _config(name, given.compile) for name in given.configs}
    from avpretrain.efficiency.bench_step import bench_steps

    console = Console(stderr=True)
    answer = bench_steps(
        configs, given.batch_size, given.repeats, say=lambda line: console.print(line, highlight=False)
    )
    if given.out is not None:
        write_json(given.out, answer)
    if given.json:
        print(json.dumps(answer, indent=2))


def _config(name: str, compiled: bool | None) -> TrainConfig:
    cfg = load_config(name)
    return cfg if compiled is None else dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, compile=compiled))
