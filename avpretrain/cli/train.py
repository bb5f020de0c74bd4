"""`avpretrain train`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from avpretrain.cli.shards import shard_with_progress
from avpretrain.cli.shared.arguments import parse
from avpretrain.cli.shared.config_first import ConfigArguments, first_and_rest
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError
from avpretrain.core.terminal import say
from avpretrain.data.write.cached import as_shards
from avpretrain.data.write.settings import ShardConfig
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.load import load_config


@dataclass(frozen=True, kw_only=True)
class Arguments(ConfigArguments):
    """What follows the config's name."""

    dry_run: bool = False
    """Print the whole plan and draw its schedules, without training: steps, clips, tokens, FLOPs, shapes, and hours on
    this device. Needs --data or --schedule.samples, takes seconds (tiny) to minutes, and writes the plot alone (and, of
    a plain folder of videos, its shards)."""
    timing: bool = True
    """With --dry-run: time a few steps of each phase on this device."""
    plot: Path | None = None
    """With --dry-run: where the plot goes; none = NAME-plan.png."""
    json: bool = False
    """With --dry-run: print the plan as JSON."""


def _arguments_for(schema: type[EngineConfig]) -> type[Arguments]:
    """`Arguments` with a config of this type, whose fields become options."""
    if schema is TrainConfig:
        return Arguments
    config = (Annotated[schema, tyro.conf.arg(name="")], field(default_factory=schema))
    namespace = {"__annotations__": {"config": config[0]}, "config": config[1], "__module__": __name__}
    return dataclass(frozen=True, kw_only=True)(type("Arguments", (Arguments,), namespace))


def run(args: Sequence[str]) -> None:
    """Pretrain from shards; the same command again resumes an interrupted run.

    Reads what --data names: shards (see `avpretrain shards`), or a plain folder of videos, which is sharded once into a
    cache (~/.cache/avpretrain, or what AVPRETRAIN_CACHE names); for a language model packed tokens (see `avpretrain
    tokens`), or a text file or folder, which is packed once into that cache. Writes runs/NAME (or --output-dir):
    config.yaml, run.json, metrics.jsonl, checkpoints/, reconstructions/, model/. Takes seconds (tiny, on a CPU) to
    weeks (base, on one GPU); each preset's head says how long. On several GPUs:
    accelerate launch [its options] -m avpretrain.train CONFIG ...
    """
    found = first_and_rest(args, "avpretrain train", Arguments, run.__doc__)
    if found is None:
        return
    name, overrides = found
    cfg = load_config(name)
    arguments: Any = _arguments_for(type(cfg))
    given = parse(arguments, overrides, f"avpretrain train {name}", arguments(config=cfg), run.__doc__)
    if isinstance(given.config, TrainConfig):
        given = dataclasses.replace(given, config=with_shards(given.config))
    if given.dry_run:
        if not isinstance(given.config, TrainConfig):
            raise UsageError(f"--dry-run plans diffmavil; method {given.config.method} has no plan to show")
        show_plan(given)
        return
    if given.json or given.plot or not given.timing:
        raise UsageError("--json, --plot and --no-timing belong to --dry-run; a run writes metrics.jsonl")
    if isinstance(given.config, TrainConfig) and not given.config.data.shards:
        raise UsageError("no data: give --data FOLDER, of videos or made by avpretrain shards")
    pretrain(given.config)


def with_shards(cfg: TrainConfig) -> TrainConfig:
    """A config in which plain folders of media have become their data sets in the cache; what is made is said."""

    def shard(src: Path, out: Path, how: ShardConfig) -> None:
        report = shard_with_progress(src, out, how)
        more = f", {len(report.skipped)} files skipped (see {out / 'skipped.csv'})" if report.skipped else ""
        say(f"{src}: {report.manifest.info['clips']} clips in {out}; {report.added} files added{more}")
        if report.changed:
            say(f"{len(report.changed)} files have changed, e.g. {report.changed[0]}; remove {out} to read them anew")

    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, shards=as_shards(cfg.data.shards, shard)))


def pretrain(cfg: EngineConfig) -> None:
    """Trains, and says how it ended."""
    from accelerate import PartialState

    from avpretrain.api import train

    outcome = train(cfg)
    if not PartialState().is_main_process:
        return
    seen, minutes = outcome.progress.seen, outcome.progress.seconds / 60
    if outcome.finished:
        say(f"done: {seen} clips in {minutes:.1f} min; model in {cfg.run_dir / 'model'}")
    else:
        say(f"stopped by {outcome.stopped_by} at {seen} clips; the same command resumes from there")
        sys.exit(0)  # whoever runs this verb among others stops too


# --- the plan --------------------------------------------------------------------------------------------------------


def show_plan(given: Arguments) -> None:
    """Prints the plan of a run and draws its schedules."""
    import torch

    from avpretrain.bench.dry_run import StepTimer, draw_schedules, dry_run
    from avpretrain.methods.load import make_method
    from avpretrain.training.build import make_accelerator
    from avpretrain.training.memory_probe import measured_memory

    cfg, total = given.config, planned_clips(given.config)
    batch = measured_memory(make_method(cfg), make_accelerator(cfg, tracked=False))
    cfg = dataclasses.replace(cfg, schedule=dataclasses.replace(cfg.schedule, batch=batch))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    answer = dry_run(cfg, total, StepTimer(cfg, device) if given.timing else None)
    plot = given.plot or Path(f"{cfg.name}-plan.png")
    draw_schedules(cfg, total, plot)
    answer["plot"] = str(plot)
    if given.json:
        print(json.dumps(answer, indent=2))
    else:
        print_plan(answer)


def planned_clips(cfg: TrainConfig) -> int:
    """Clips that a run will see.

    Raises:
        UsageError: neither the config nor a data set says.
    """
    from avpretrain.config.schedules import total_samples
    from avpretrain.data.read.clips import ClipSet

    if cfg.schedule.samples is not None:
        return cfg.schedule.samples
    if not cfg.data.shards:
        raise UsageError("how long the run is depends on the data: give --data.shards FOLDER or --schedule.samples N")
    return total_samples(cfg.schedule, len(ClipSet(cfg.data.shards, cfg.data.split, cfg.data.cache_dir)))


def print_plan(answer: dict[str, Any]) -> None:
    """The plan as a table and a few lines."""

    from avpretrain.cli.shared.tables import show_table
    from avpretrain.core.terminal import Console
    from avpretrain.measures.numbers import duration, flops, percent, si

    timed = "hours" in answer
    headings = [
        "masked a/v",
        "batch",
        "steps",
        "clips",
        "FLOPs",
        *(("clips timed", "seconds", "time") if timed else ()),
    ]
    rows = []
    for row in answer["phases"]:
        cells = [f"{percent(row['audio_mask_ratio'])} / {percent(row['video_mask_ratio'])}", f"{row['batch_size']}"]
        cells += [f"{row['steps']:,}", f"{row['clips']:,}", flops(row["flops"])]
        if timed:
            cells += [f"{row['timed_clips']}", f"{row['timed_seconds']:.3g}", duration(row["hours"] * 3600)]
        rows.append(cells)
    console = Console()
    show_table(headings, rows, f"Plan of {answer['config']}", text=0, console=console)
    lines = [
        f"{answer['clips']:,} clips in {answer['steps']:,} steps, {si(answer['visible_tokens'])} visible tokens, "
        f"{flops(answer['flops'])}, {answer['shapes']} distinct shapes"
    ]
    if timed:
        gpus = answer["hardware"]["gpus"]
        lines.append(
            f"expected: {duration(answer['hours'] * 3600)} of steps on one {gpus[0] if gpus else 'CPU like this one'}"
            + (f", {duration(answer['compile_seconds'])} of compilation" if answer["compile_seconds"] else "")
            + "; waiting for clips, checkpoints and previews come on top"
        )
    for line in [*lines, f"plot: {answer['plot']}"]:
        console.print(line, highlight=False, soft_wrap=True)
