"""What a run says while it trains: metrics.jsonl, trackers, a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from avpretrain.config.schedules import Phase
from avpretrain.core.files import atomic_path
from avpretrain.core.terminal import Console, plain

METRICS_NAME, DAMAGED_NAME = "metrics.jsonl", "metrics.damaged.jsonl"


class LossMeter:
    """Mean losses since the last reading, kept on the device so that no step waits for a number."""

    def __init__(self) -> None:
        self._sum: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self._sum[name] = self._sum.get(name, torch.zeros_like(value, dtype=torch.float32)) + value.detach()
        self._steps += 1

    def read(self) -> Tensor:
        """Means in the order of `names`, on the device; starts anew."""
        means = torch.stack(list(self._sum.values())) / self._steps
        self._sum, self._steps = {}, 0
        return means

    @property
    def names(self) -> list[str]:
        return list(self._sum)


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, in order of clips seen.

    A damaged line, and what follows it, is cut off; the file as it was stays as `metrics.damaged.jsonl`.

    Args:
        seen: clips seen at the checkpoint the run resumes from; later lines, of a lost attempt, are dropped.
    """

    def __init__(self, run_dir: Path, seen: int) -> None:
        self.path = run_dir / METRICS_NAME
        lines, bad = _read_lines(self.path)
        kept = [line for line in lines if line["seen"] <= seen]
        self.damage = ""
        """What was cut off, in a line; empty = nothing."""
        last = lines[-1]["seen"] if lines else 0
        if bad and last < seen:
            aside = self.path.with_name(DAMAGED_NAME)
            self.path.replace(aside)
            self.damage = (
                f"{self.path} is damaged in line {bad}: it is cut there, and lacks what was logged from {last} to "
                f"{seen} clips; as it was, it is kept as {aside.name}"
            )
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics, up to the first that is damaged, as the last one may be after a crash."""
    return _read_lines(run_dir / METRICS_NAME)[0]


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Lines up to the first damaged one, and that one's number; 0 = none is."""
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            return lines, number
        seen = line.get("seen") if isinstance(line, dict) else None
        if type(seen) is not int or seen < (lines[-1]["seen"] if lines else 0):
            return lines, number
        lines.append(line)
    return lines, 0


class ProgressBar:
    """A bar on a terminal, a line a log step elsewhere; silent on all ranks but the first.

    Args:
        seen, total: clips seen so far, and in the whole run.
        labels: metrics that are shown after the loss, by what they are called there.
    """

    def __init__(self, name: str, seen: int, total: int, shown: bool, labels: Mapping[str, str] | None = None) -> None:
        self.console = Console(stderr=True, quiet=not shown)
        self.name, self.total, self.labels = name, total, labels or {}
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and sys.stderr.isatty()),
        )
        self._task: TaskID = self._bar.add_task(plain(name), total=total, completed=seen, state="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, seen: int) -> None:
        self._bar.update(self._task, completed=min(seen, self.total))

    def report(self, line: dict[str, Any], phase: Phase) -> None:
        """Shows a line of metrics."""
        losses = [f"{label} {line[key]:.3f}" for label, key in self.labels.items() if key in line]
        parts = [f"loss {line['loss']:.3f}", *losses, str(phase), f"batch {line['batch_size']}"]
        state = "  ".join(part for part in (*parts, f"{line['clips_per_second']:.1f} clips/s") if part)
        if self._bar.disable:
            self.console.print(f"{self.name}  {line['seen']}/{self.total}  {state}", highlight=False, soft_wrap=True)
        else:
            self._bar.update(self._task, state=state)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)
