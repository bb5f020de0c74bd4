"""`avpretrain train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from avpretrain.cli import parse
from avpretrain.config import TrainConfig
from avpretrain.configfile import load_config
from avpretrain.errors import UsageError

HELP = """\
usage: avpretrain train CONFIG [--section.field VALUE ...]
       accelerate launch [its options] -m avpretrain.train CONFIG [--section.field VALUE ...]

Pretrains from shards. CONFIG is a YAML file or the name of a preset; 'train CONFIG --help' lists every field.

reads   the shards that --data.shards names (see 'avpretrain shards')
writes  runs/NAME (or --output-dir): config.yaml, run.json, metrics.jsonl, checkpoints/, reconstructions/, model/
takes   seconds (tiny, on a CPU) to weeks (base, on one GPU); each preset's head says how long

The same command again goes on with an interrupted run."""


def run(args: Sequence[str]) -> None:
    """Trains as the command line says."""
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return
    name, *overrides = args
    if name.startswith("-"):
        raise UsageError("the config comes first: avpretrain train CONFIG [--section.field VALUE ...]")
    cfg = parse(TrainConfig, overrides, f"avpretrain train {name}", load_config(name))
    if not cfg.data.shards:
        raise UsageError("no data: give --data.shards FOLDER (made by avpretrain shards)")
    if cfg.model.objective == "features":
        from avpretrain.training.rounds import self_train

        outcome = self_train(cfg)
    else:
        from avpretrain.training.loop import train

        outcome = train(cfg)
    seen, minutes = outcome.progress.seen, outcome.progress.seconds / 60
    if outcome.finished:
        print(f"done: {seen} clips in {minutes:.1f} min; model in {cfg.run_dir / 'model'}")
    else:
        print(f"stopped by {outcome.stopped_by} at {seen} clips; the same command goes on from there")
        sys.exit(0)  # whoever runs this verb among others stops too
