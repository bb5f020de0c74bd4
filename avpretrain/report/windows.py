"""The report's section on active speaker detection: average precision by how much past and future a model sees."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from avpretrain.measures.numbers import significant
from avpretrain.methods.speaker.config import FPS
from avpretrain.methods.speaker.results import WindowResult, read_results
from avpretrain.report.comparison import Comparison
from avpretrain.report.page import EMPTY, Block, Cell, Figure, Figures, Section, Table
from avpretrain.report.svg import LEFT, WIDTH

ROW = 26
STRONGEST = 0.65
"""Opacity of the highest cell: text on it stays legible."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A grid of numbers, the stronger coloured the higher; places without one stay empty."""

    template: ClassVar[str] = "heat.svg"
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    """By row, then by column."""
    row_title: str = ""
    column_title: str = ""
    width: ClassVar[int] = WIDTH
    left: ClassVar[int] = LEFT
    row_height: ClassVar[int] = ROW

    @property
    def height(self) -> int:
        """Pixels, with both lines of labels."""
        return ROW * len(self.rows) + 44

    @property
    def column_width(self) -> float:
        """Pixels of a cell."""
        return (WIDTH - LEFT) / max(1, len(self.columns))

    def strength(self, value: float) -> float:
        """Opacity of a value's cell."""
        known = [v for row in self.values for v in row if v is not None]
        low, high = min(known), max(known)
        return STRONGEST * (0.1 + 0.9 * (value - low) / (high - low if high > low else 1.0))

    def text(self, value: float) -> str:
        """A value as its cell shows it."""
        return f"{value:.3f}"


def windows(comparison: Comparison) -> Section | None:
    """A map over past and future for each data set, and a table of everything."""
    runs = [run for group in comparison.groups for run in group.runs]
    every = [
        result for run in runs for result in read_results(run.path, run.config, int(run.info.get("parameters", 0)))
    ]
    if not every:
        return None
    blocks: list[Block] = []
    labels = list(dict.fromkeys(result.label for result in every))
    maps = [drawn for label in labels if (drawn := _map([f for f in every if f.label == label], label)) is not None]
    if maps:
        blocks.append(Figures(maps))
    keys = list(dict.fromkeys(_key(result) for result in every))
    rows = [_row([result for result in every if _key(result) == key]) for key in keys]
    headings = ["fusion", "data", "sees past", "sees future", "latency", "parameters", "seeds", "AP", "sd"]
    blocks.append(Table("Active speaker detection", headings, rows))
    note = (
        "Average precision over labelled frames of tracks, as AVA-ActiveSpeaker computes it; means over seeds. "
        "In the map, past is that of each block and future that of the first. In the table, both are frames that a "
        "score depends on, end to end; latency is that of waiting alone, at 25 frames a second."
    )
    return Section("speakers", "Active speaker detection", blocks, note)


def _key(result: WindowResult) -> tuple[str, str, int, int, int]:
    return result.label, result.kind, result.past, result.future, result.parameters  # of another size is another model


def _map(results: Sequence[WindowResult], label: str) -> Figure | None:
    """The map of one data set, where banded attention was trained with more than one window."""
    cells: dict[tuple[int, int], list[float]] = {}
    for one in results:
        if one.kind == "banded":
            cells.setdefault((one.past, one.future), []).append(one.average_precision)
    if len(cells) < 2:
        return None
    pasts, futures = _ascending(past for past, _ in cells), _ascending(future for _, future in cells)
    pasts.reverse()
    values = [[statistics.fmean(cells[p, f]) if (p, f) in cells else None for f in futures] for p in pasts]
    drawn = HeatMap(
        f"Average precision by past and future, {label}",
        [_frames(past) for past in pasts],
        [_frames(future) for future in futures],
        values,
        "past",
        "future, frames",
    )
    return Figure("Average precision", drawn, f"{label}, by frames of past and future")


def _row(results: Sequence[WindowResult]) -> list[Cell]:
    first, values = results[0], [one.average_precision for one in results]
    mean, future = statistics.fmean(values), first.window_future
    latency = EMPTY if future is None else Cell(f"{1000 * future / FPS:.0f} ms", future)
    return [
        Cell(first.kind),
        Cell(first.label),
        Cell(_frames(first.window_past), _rank(first.window_past)),
        Cell(_frames(future), _rank(future)),
        latency,
        Cell(f"{first.parameters:,}", first.parameters),
        Cell(str(len(values)), len(values)),
        Cell(significant(mean, 4), mean),
        Cell(significant(statistics.stdev(values), 2)) if len(values) > 1 else EMPTY,
    ]


def _frames(count: int | None) -> str:
    return "all" if count is None or count < 0 else str(count)


def _rank(count: int | None) -> float:
    return float("inf") if count is None or count < 0 else count


def _ascending(counts: Iterable[int]) -> list[int]:
    return sorted(set(counts), key=_rank)
