"""`avpretrain bench startup`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from avpretrain.cli import bench
from avpretrain.cli import main as cli
from avpretrain.cli.shared.arguments import bind
from avpretrain.cli.shared.places import require_file
from avpretrain.cli.shared.tables import show_table
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import Console

if TYPE_CHECKING:
    from avpretrain.bench.startup import Kind, StartUp

FIRST = {"train": "tiny_mavil", "flops": "tiny_mavil", "ledger": "tiny_mavil", "bench loader": "tiny_mavil",
         "ablate": "ablation"}  # fmt: skip
"""What a verb needs before it looks at its options."""


def measure(
    verbs: tuple[str, ...] = (),
    repeats: int = 5,
    out: Path | None = None,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measure how long `avpretrain --help`, the help of each verb and a usage error of each take to appear.

    In seconds, and as a ratio to `python -c "import torch"` in the same round, by the clock and in processor time;
    medians over --repeats rounds. Reads nothing; writes nothing but --out. Takes about half a minute a round on an
    idle machine.

    Args:
        verbs: verbs to measure; none = all.
        repeats: rounds that are counted; one more comes before them.
        out: write the numbers as JSON.
        json_: print the numbers as JSON.
    """
    require_file(out)
    if repeats < 1:
        raise UsageError(f"--repeats must be at least 1, got {repeats}")
    lines = _lines(verbs)
    from avpretrain.bench.startup import measure_startup
    from avpretrain.core.provenance import environment

    console = Console(stderr=True)
    found = measure_startup(lines, repeats, lambda number: console.print(f"round {number} of {repeats} done"))
    answer = {**found.to_json(), **environment()}
    if out is not None:
        write_json(out, answer)
    print(json.dumps(answer, indent=2)) if json_ else _show(found)


def _lines(verbs: Sequence[str]) -> list[tuple[Kind, list[str]]]:
    """What is run: kind and arguments.

    Raises:
        UsageError: there is no such verb.
    """
    known = [*(verb for verb in cli.VERBS if verb != "bench"), "bench", *(f"bench {name}" for name in bench.SUBJECTS)]
    for verb in verbs:
        if verb not in known:
            raise UsageError(f"no verb '{verb}' to measure; verbs: {', '.join(known)}")
    lines: list[tuple[Kind, list[str]]] = [("help", ["--help"])]
    for verb in verbs or known:
        lines.append(("verb help", [*verb.split(), "--help"]))
        if verb in FIRST:
            lines.append(("verb help", [*verb.split(), FIRST[verb], "--help"]))
        lines.append(("usage error", [*verb.split(), *([FIRST[verb]] if verb in FIRST else []), "--nonsense"]))
    return lines


def _show(found: StartUp) -> None:
    rows = [
        (
            start.command,
            f"{start.seconds:.2f} s",
            f"{start.ratio:.2f}",
            f"{start.cpu_ratio:.2f}",
            f"{start.goal:.2f}" if start.reached else f"{start.goal:.2f} missed",
        )
        for start in found.starts
    ]
    show_table(("command", "takes", "ratio", "of CPU time", "goal"), rows, "Start of a command, import torch = 1")
    missed = sum(not start.reached for start in found.starts)
    Console().print(
        f"import torch takes {found.torch_seconds:.2f} s ({found.torch_cpu_seconds:.2f} s of processor time); "
        f"{len(found.starts) - missed} of {len(found.starts)} commands are within their goal",
        highlight=False,
    )


def run(args: Sequence[str]) -> None:
    """Measures as the command line says."""
    bind(measure, args, "avpretrain bench startup")()
