"""How long a command takes to start, next to `import torch` on the same machine."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from avpretrain.core.errors import UserError

__all__ = ["GOALS", "Kind", "Start", "StartUp", "measure_startup"]

Kind = Literal["help", "verb help", "usage error"]
GOALS: Mapping[Kind, float] = {"help": 0.5, "verb help": 1.0, "usage error": 2.0}
"""Seconds that each may take where `import torch` takes `TORCH_SECONDS`."""
TORCH_SECONDS = 3.0
EXIT: Mapping[Kind, int] = {"help": 0, "verb help": 0, "usage error": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """How one command line starts and ends; medians over the rounds."""

    command: str
    kind: Kind
    seconds: float
    """From start to exit, by the clock."""
    cpu_seconds: float
    """Of processor time, which other work on the machine hardly changes."""
    ratio: float
    """Seconds over those of `import torch` in the same round."""
    cpu_ratio: float
    """The same of processor time."""

    @property
    def goal(self) -> float:
        """Highest ratio that is wanted."""
        return GOALS[self.kind] / TORCH_SECONDS

    @property
    def reached(self) -> bool:
        """Whether the ratio by the clock is within the goal."""
        return self.ratio <= self.goal


@dataclass(frozen=True, kw_only=True, slots=True)
class StartUp:
    """All commands of one measurement."""

    repeats: int
    torch_seconds: float
    """Median of `python -c "import torch"`, by the clock."""
    torch_cpu_seconds: float
    starts: tuple[Start, ...]

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types, with what follows from the fields."""
        rows = [{**asdict(start), "goal": start.goal, "reached": start.reached} for start in self.starts]
        return {**{name: getattr(self, name) for name in self.__slots__ if name != "starts"}, "starts": rows}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StartUp:
        """The inverse of `to_json`; other keys are left out."""
        rows = [Start(**{name: row[name] for name in Start.__slots__}) for row in values["starts"]]
        return cls(**{name: values[name] for name in cls.__slots__ if name != "starts"}, starts=tuple(rows))


def measure_startup(
    lines: Sequence[tuple[Kind, Sequence[str]]], repeats: int = 5, on_round: Callable[[int], None] = lambda _: None
) -> StartUp:
    """Runs `python -m avpretrain LINE` for each line, and `import torch`, in turn for `repeats` rounds.

    A first round of each, which fills the disk's cache and compiles modules, is not counted.

    Args:
        on_round: called with the number of each round that is done, the first included.

    Raises:
        UserError: a line does not end as its kind does: help with status 0, a usage error with 2.
    """
    commands = {" ".join(line): (kind, [sys.executable, "-m", "avpretrain", *line]) for kind, line in lines}
    rounds: list[dict[str, tuple[float, float]]] = []
    torches: list[tuple[float, float]] = []
    for number in range(repeats + 1):
        rounds.append({name: _timed(command, EXIT[kind]) for name, (kind, command) in commands.items()})
        torches.append(_timed([sys.executable, "-c", "import torch"], 0))
        on_round(number)
    del torches[0], rounds[0]
    starts = []
    for name, (kind, _) in commands.items():
        (seconds, cpu), (ratio, cpu_ratio) = (
            [statistics.median(row[i] / over[i] for row, over in zip((r[name] for r in rounds), under, strict=True))
             for i in (0, 1)]
            for under in ([(1.0, 1.0)] * repeats, torches)
        )  # fmt: skip
        starts.append(
            Start(command=name, kind=kind, seconds=seconds, cpu_seconds=cpu, ratio=ratio, cpu_ratio=cpu_ratio)
        )
    clock, processor = (statistics.median(torch[i] for torch in torches) for i in (0, 1))
    return StartUp(repeats=repeats, torch_seconds=clock, torch_cpu_seconds=processor, starts=tuple(starts))


def _timed(command: Sequence[str], status: int) -> tuple[float, float]:
    """Seconds by the clock and of processor time, of the command and what it waited for.

    Raises:
        UserError: it ends with another status.
    """
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    after, ended = os.times(), time.perf_counter()
    if done.returncode != status:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(
            f"'{' '.join(command[1:])}' ended with status {done.returncode}, not {status}; run it to see why: {said}"
        )
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return ended - began, used
