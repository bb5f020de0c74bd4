"""`avpretrain ledger`."""

from __future__ import annotations

import json as json_format
from pathlib import Path

from rich.console import Console
from rich.table import Table

from avpretrain.config import load_config
from avpretrain.efficiency.ledger import ACCOUNTINGS, VARIANTS, Entry, as_json, ledger
from avpretrain.efficiency.numbers import flops, percent
from avpretrain.errors import UsageError
from avpretrain.files import write_json
from avpretrain.provenance import versions


def main(config: str = "base_mavil", clips: int = 1_900_000, out: Path | None = None, json: bool = False) -> None:
    """Count what whole trainings of MAViL, DiffMAViL and what lies between them would cost, without training.

    Reads a config for size and length; no data, no weights. Writes the numbers to --out as JSON, if given. Takes about
    ten seconds.

    Args:
        config: A YAML file or the name of a preset.
        clips: In the training split; the default is near AudioSet's. How often they are seen is the config's.
        out: File of the numbers.
        json: Print the numbers as JSON.
    """
    if clips < 1:
        raise UsageError(f"--clips must be at least 1, got {clips}")
    cfg = load_config(config)
    entries = ledger(cfg, clips)
    answer = {"config": cfg.name, "clips_in_split": clips, "versions": versions(), "entries": as_json(entries)}
    if out:
        write_json(out, answer)
    if json:
        print(json_format.dumps(answer, indent=2))
    else:
        Console().print(_table(f"{cfg.name}, {entries[0].cost.clips:,} clips seen", entries))


def _table(title: str, entries: list[Entry]) -> Table:
    table = Table(title=f"FLOPs and saving against MAViL: {title}")
    table.add_column("variant", no_wrap=True)
    for accounting in ACCOUNTINGS:
        table.add_column(accounting, justify="right", no_wrap=True)
    found = {(entry.variant, entry.accounting): entry for entry in entries}
    for variant in VARIANTS:
        row = [found[variant, accounting] for accounting in ACCOUNTINGS]
        table.add_row(variant, *(f"{flops(entry.cost.total)}  {percent(entry.saving):>6}" for entry in row))
    return table
