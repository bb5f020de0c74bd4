"""`avpretrain ablate`."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avpretrain.ablate.kinds import cost_of, prepared, run_length, sample_name, training_samples
from avpretrain.ablate.matrix import OF_A_CELL, Ablation, Cell, cells_of, load_ablation
from avpretrain.cli.shared.arguments import parse
from avpretrain.cli.shared.config_first import ConfigArguments, arguments_for, first_and_rest
from avpretrain.cli.shared.places import require_folder
from avpretrain.cli.shared.tables import show_table
from avpretrain.config.reader import to_dict
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import atomic_path, write_json
from avpretrain.core.terminal import Console, say
from avpretrain.measures.numbers import flops, percent
from avpretrain.methods.diffmavil.config import TrainConfig

WIDE = 240
"""Characters of a table that goes to a file, which has no width of its own."""


A_MATRIX = "A YAML file or the name of a preset that lists variants."


@dataclass(frozen=True, kw_only=True)
class Arguments(ConfigArguments):
    """What follows the matrix's name."""

    base: str | None = None
    """Config where all variants start, in place of the matrix's: a YAML file or the name of a preset."""
    out: Path | None = None
    """Folder for everything; needed unless --dry-run."""
    seeds: tuple[int, ...] = ()
    """Seeds of every variant, in place of the matrix's."""
    only: tuple[str, ...] = ()
    """Names of variants; none = all."""
    jobs: int = 1
    """Cells at a time; they share a GPU, or are dealt out over several."""
    dry_run: bool = False
    """List the cells and their cost, and run nothing; with --out, write their configs."""
    json: bool = False
    """Print the summary as JSON."""


def run(args: Sequence[str]) -> None:
    """Train variants of a config under several seeds, probe them, and compare what they cost and what they reach.

    Reads a matrix (see configs/ablations/ablation.yaml) and shards; or a matrix of a language model
    (ablation_widths.yaml) and packed tokens or text: its cells are measured by perplexity and bits per byte. Writes
    DIR/cells/NAME-sSEED.json for each cell; DIR/table.md, DIR/summary.json and DIR/report.html over all of them;
    DIR/runs, DIR/configs and DIR/logs. Takes the trainings and probes of all cells; --dry-run lists them with their
    FLOPs in seconds. The same command again runs what is missing or failed. Exit status 1 when a cell failed; the
    others run all the same.
    """
    found = first_and_rest(args, "avpretrain ablate", Arguments, run.__doc__, "MATRIX", A_MATRIX)
    if found is None:
        return
    name, rest = found
    ablation = load_ablation(name, _base(rest))
    known = isinstance(ablation.base, TrainConfig)
    arguments: Any = Arguments if known else arguments_for(Arguments, type(ablation.base))
    given: Any = parse(arguments, rest, f"avpretrain ablate {name}", arguments(config=ablation.base), run.__doc__)
    for key in OF_A_CELL:
        if to_dict(given.config)[key] != to_dict(ablation.base)[key]:
            raise UsageError(f"--{key.replace('_', '-')} is set for each cell; use --seeds, --only and --out")
    if given.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {given.jobs}")
    if given.out is not None:
        require_folder(given.out)
    ablation = replace(ablation, base=given.config)
    cells = cells_of(ablation, given.out or Path("ablation"), given.seeds, given.only)
    if given.dry_run:
        _show_plan(ablation, cells)
        if given.out:
            for cell in cells:
                cell.write_config()
            say(f"configs: {given.out / 'configs'}")
        return
    if given.out is None:
        raise UsageError("no folder for the results: give --out DIR")
    if not given.config.data.shards:
        raise UsageError("no data: give --data.shards FOLDER (made by avpretrain shards or tokens)")
    ready = prepared(ablation.base)
    if ready != ablation.base:
        ablation = replace(ablation, base=ready)
        cells = cells_of(ablation, given.out, given.seeds, given.only)
    _run(ablation, cells, given)


def _base(args: Sequence[str]) -> str | None:
    """The value of --base, which must be known before the other arguments can be read."""
    for i, argument in enumerate(args):
        if argument == "--base" and i + 1 < len(args):
            return args[i + 1]
        if argument.startswith("--base="):
            return argument.removeprefix("--base=")
    return None


def _run(ablation: Ablation, cells: Sequence[Cell], given: Arguments) -> None:
    from avpretrain.ablate.record import fingerprint, is_done
    from avpretrain.ablate.run import Runner

    console = Console(stderr=True)
    hashed = [(cell, fingerprint(cell, ablation.settings)) for cell in cells]
    todo = [(cell, digest) for cell, digest in hashed if not is_done(cell, digest)]
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} done before", highlight=False)
    runner = Runner(ablation.settings, given.jobs, lambda text: console.print(text, highlight=False, soft_wrap=True))
    runner.run(todo)
    failed = _conclude(ablation, cells, given)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}; the same command tries them again; "
            f"their logs are in {cells[0].out / 'logs'}"
        )


def _conclude(ablation: Ablation, cells: Sequence[Cell], given: Arguments) -> list[str]:
    """Writes what the cells say together; names of those that failed."""
    from avpretrain.ablate.record import read_record
    from avpretrain.ablate.summary import markdown, notes, summary, table, warnings
    from avpretrain.report.write import write_report

    out = cells[0].out
    records = {cell.name: read_record(cell.record) for cell in cells}
    matrix = summary(ablation, list(records.values()))
    write_json(out / "summary.json", matrix.to_json())
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(markdown(matrix))
    done = [cell.run for cell in cells if records[cell.name].status == "done"]
    if done:
        write_report(done, out / "report.html", warnings(matrix))
    if given.json:
        print(json_format.dumps(matrix.to_json(), indent=2))
    elif done:
        _show(f"{ablation.name}: variants of {ablation.settings.base}", table(matrix))
        say("\n".join(notes(matrix)))
        say(f"report: {out / 'report.html'}")
    return list(matrix.failed)


def _show(title: str, rows: Sequence[Sequence[str]]) -> None:
    headings, *body = rows
    console = Console()
    show_table(headings, body, title, console=console if console.is_terminal else Console(width=WIDE))


def _show_plan(ablation: Ablation, cells: Sequence[Cell]) -> None:
    """The variants, what each differs in, and what it will cost."""
    clips, each = training_samples(ablation.base), sample_name(ablation.base)
    rows = [["variant", "seeds", "differs from", "in", f"FLOPs a {each}", "saved", "steps", "FLOPs a run"]]
    samples = run_length(ablation.base, clips)
    baseline = cost_of(ablation.config(ablation.baseline), samples)
    for variant in dict.fromkeys(cell.variant.name for cell in cells):
        own = [cell for cell in cells if cell.variant.name == variant]
        cost = cost_of(own[0].config, run_length(own[0].config, clips))
        parents = ", ".join(own[0].variant.extends) or ablation.settings.base
        changes = ", ".join(f"{key}={value}" for key, value in own[0].variant.changes.items())
        row = [variant, ", ".join(str(cell.seed) for cell in own), parents, changes or "-"]
        row += [flops(cost.per_clip), percent(1 - cost.per_clip / baseline.per_clip)]
        row += [f"{cost.steps:,}", flops(cost.total)] if samples else ["-", "-"]
        rows.append(row)
    _show(f"{ablation.name}: {len(cells)} cells", rows)
