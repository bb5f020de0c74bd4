"""`avpretrain ledger`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avpretrain.cli.shared.config_first import ConfigArguments, read
from avpretrain.cli.shared.places import require_file
from avpretrain.cli.shared.tables import show_table
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import write_json
from avpretrain.core.provenance import versions
from avpretrain.measures.numbers import flops, percent, significant
from avpretrain.report.hours import GPUS, read_bench
from avpretrain.report.ledger import ACCOUNTINGS, VARIANTS, Entry, as_json, ledger

ASSUMPTION = "Hours are of training steps alone: no waiting for data, and no cost of communication between GPUs."


DEFAULT = "base_mavil"
"""Config of which the variants are counted when none is named."""


@dataclass(frozen=True, kw_only=True)
class Arguments(ConfigArguments):
    """What follows the config's name."""

    clips: int = 1_900_000
    """In the training split; the default is near AudioSet's. How often they are seen is the config's."""
    bench: Path | None = None
    """Step times on one GPU, written by `avpretrain bench step` for the same config and others."""
    out: Path | None = None
    """File of the numbers."""
    json: bool = False
    """Print the numbers as JSON."""


def run(args: Sequence[str]) -> None:
    """Count what whole trainings of MAViL, DiffMAViL and what lies between them would cost, without training.

    Reads a config (base_mavil, if none is named) for size and length; no data, no weights. With --bench also predicts
    hours: the clips of each phase over the speed measured there. Writes the numbers to --out as JSON, if given. Takes
    about ten seconds.
    """
    named = args and (not args[0].startswith("-") or args[0] in ("-h", "--help"))
    given = read(Arguments, args if named else [DEFAULT, *args], "avpretrain ledger", run.__doc__)
    if given is None:
        return
    cfg, clips, bench, out = given.config, given.clips, given.bench, given.out
    if clips < 1:
        raise UsageError(f"--clips must be at least 1, got {clips}")
    require_file(out)
    measured = read_bench(bench) if bench else None
    entries = ledger(cfg, clips, measured)
    if bench and not any(entry.time for entry in entries):
        raise UserError(
            f"{bench} fits no variant of {cfg.name}; measure its phases with: avpretrain bench step {cfg.name}"
        )
    answer = {"config": cfg.name, "clips_in_split": clips, "versions": versions(), "entries": as_json(entries)}
    if measured:
        answer |= {"hours_measured_on": measured.hardware, "hours_assume": ASSUMPTION}
    if out:
        write_json(out, answer)
    if given.json:
        print(json.dumps(answer, indent=2))
    else:
        title = f"{cfg.name}, {entries[0].cost.clips:,} clips seen"
        _show(title, entries)
        if measured:
            _show_hours(title, entries)
            print(ASSUMPTION)


def _show_hours(title: str, entries: list[Entry]) -> None:
    rows = []
    for entry in entries:
        if entry.time is not None:
            hours = [f"{significant(entry.time.hours / n)} h" for n in GPUS]
            saved = "" if entry.time_saving is None else percent(entry.time_saving)
            rows.append([entry.variant, entry.accounting, entry.time.measured, *hours, saved])
    headings = ("variant", "accounting", "measured as", *(f"on {n} GPU{'s' * (n > 1)}" for n in GPUS), "saved")
    show_table(headings, rows, f"Hours and saving against MAViL: {title}", text=3)


def _show(title: str, entries: list[Entry]) -> None:
    rows = []
    found = {(entry.variant, entry.accounting): entry for entry in entries}
    for variant in VARIANTS:
        row = [found[variant, accounting] for accounting in ACCOUNTINGS]
        rows.append([variant, *(f"{flops(entry.cost.total)}  {percent(entry.saving):>6}" for entry in row)])
    show_table(("variant", *ACCOUNTINGS), rows, f"FLOPs and saving against MAViL: {title}")
