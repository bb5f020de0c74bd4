"""`avpretrain bench loader`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from avpretrain.cli.shared.config_first import ConfigArguments, read
from avpretrain.cli.shared.places import require_file
from avpretrain.config.reader import to_dict
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import Console, say


@dataclass(frozen=True, kw_only=True)
class Arguments(ConfigArguments):
    """What follows the config's name."""

    clips: int = 2000
    """Clips in each part and round."""
    rounds: int = 3
    """Rounds of bare loop and loader; medians over them are shown."""
    step: bool = False
    """Measure feeding of real training steps, too; on a CPU the steps take most of the time."""
    out: Path | None = None
    """Write the numbers as JSON."""
    json: bool = False
    """Print the numbers as JSON."""


def run(args: Sequence[str]) -> None:
    """Measure how fast clips come from shards, and what memory that takes.

    Decoded in a bare loop (the bound) and by the full loader, in turn, and with --step by the loader that feeds
    training steps; also where the time of a loader process goes, and resident memory at the start and end of each
    round. Reads the shards that --data.shards names, decoding every clip anew (data.memory_cache_mb counts as 0).
    Writes nothing but --out. Takes two to three times as long as decoding the clips, each round.
    """
    given = read(Arguments, args, "avpretrain bench loader", run.__doc__)
    if given is None:
        return
    if not given.config.data.shards:
        raise UsageError("no data: give --data.shards FOLDER (made by avpretrain shards)")
    if min(given.clips, given.rounds) < 1:
        raise UsageError(f"--clips and --rounds must be at least 1, got {given.clips} and {given.rounds}")
    require_file(given.out)
    answer = measure(given)
    if given.out is not None:
        write_json(given.out, answer)
    print(json.dumps(answer, indent=2)) if given.json else _show(answer)


def measure(given: Arguments) -> dict[str, Any]:
    """All parts, with what they were measured on."""
    from avpretrain.bench.loader import Bench, alternate, feed_steps, stages
    from avpretrain.core.provenance import environment
    from avpretrain.data.read.clips import ClipSet
    from avpretrain.methods.diffmavil.method import resolve

    clips = ClipSet(given.config.data.shards, given.config.data.split, given.config.data.cache_dir)
    data = dataclasses.replace(given.config.data, memory_cache_mb=0)  # what is kept is not decoded
    cfg = resolve(dataclasses.replace(given.config, data=data), clips)
    bench = Bench(cfg, given.clips)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("bare decode and loader", total=given.clips * given.rounds)
        measured = alternate(bench, given.rounds, lambda done: bar.update(line, completed=done))
        fed: dict[str, Any] = {}
        if given.step:
            steps = bar.add_task("loader feeding steps", total=given.clips)
            fed = {"feeding_steps": feed_steps(bench, lambda done: bar.update(steps, completed=done))}
    return {
        "config": cfg.name,
        "data": {"clips": len(clips), "fingerprint": clips.fingerprint, "mode": cfg.data.mode},
        "input": to_dict(cfg.model.input),
        "workers": cfg.data.num_workers,
        "batch_size": bench.batch_size,
        **measured,
        **fed,
        "milliseconds_a_clip": stages(cfg.data, cfg.model.input, cfg.seed),
        **environment(),
    }


def _show(answer: dict[str, Any]) -> None:
    rounds = answer["rounds"]
    shares = [r["share"] for r in rounds]
    share = f"{answer['loader_share_of_bare_decode']:.1%} of bare decode ({min(shares):.1%} to {max(shares):.1%})"
    lines = [
        f"bare decode    {answer['bare_decode_clips_per_second']:8.1f} clips/s with {answer['workers']} processes",
        f"loader         {answer['loader_clips_per_second']:8.1f} clips/s, {share} over {len(rounds)} rounds",
    ]
    if fed := answer.get("feeding_steps"):
        lines += [
            f"feeding steps  {fed['clips_per_second']:8.1f} clips/s, {fed['wait_share']:.1%} of it waiting for data"
        ]
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in answer["milliseconds_a_clip"].items())
    before, after = (rounds[-1]["loader"][key]["total"] / 2**20 for key in ("memory_start", "memory_end"))
    lines += [f"ms a clip      {parts}"]
    lines += [f"memory         {before:.0f} MiB at the start, {after:.0f} MiB at the end of the last round"]
    say("\n".join(lines))
