"""The report's section on context: what the encoder is worth to the decoders, by timestep."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from avpretrain.measures.runs import Run
from avpretrain.measures.scores import bounds
from avpretrain.measures.studies import Benefit, Context
from avpretrain.report.charts import COLOURS, colours, measured
from avpretrain.report.comparison import Comparison
from avpretrain.report.groups import Group
from avpretrain.report.page import Block, Figure, Figures, Section
from avpretrain.report.svg import Bar, BarChart, Segment, Series, chart

SIDES = ("audio", "video")


def context_of(run: Run) -> Mapping[str, Benefit]:
    """Modality -> what `avpretrain context` found of a run; empty where it was not measured.

    Raises:
        UserError: the result is damaged.
    """
    path = next(iter(sorted((run.path / "eval").glob("context*.json"))), None)
    if path is None:
        return {}
    return Context.read(path, "context", "avpretrain context").sides


def contexts(comparison: Comparison) -> Section | None:
    """Benefit of context by timestep, and its mean over the draws of a training."""
    every = measured(comparison, context_of)
    if not every:
        return None
    lines, rows = [], []
    for side in SIDES:
        heard = [(i, group, own) for i, group, benefits in every if (own := [f[side] for f in benefits if side in f])]
        last = max((run.timesteps[-1] for _, _, own in heard for run in own), default=0)
        series = [line for i, group, own in heard if (line := _line(i, group, own, last)) is not None]
        if series:
            drawn = chart(f"Benefit of context, {side}", series, "timestep", from_zero=True)
            lines.append(Figure("Benefit of context", drawn, f"{side}, by timestep", readout=True))
        bars_of = [_bar(i, group, own) for i, group, own in heard]
        if bars_of:
            highest = max(segment.end for row in bars_of for segment in row.segments)
            rows.append(Figure("Mean over draws", BarChart(f"Benefit over draws, {side}", bars_of, highest), side))
    note = (
        "Error of hidden patches with another clip's context less that with their own. Where it is 0 the decoder reads "
        "the diffused patch alone, and the encoder learns nothing from it. Mask tokens are at pure noise: a level "
        "line. The mean over draws is what a training sees. Means over seeds."
    )
    blocks: list[Block] = [colours(one[:2] for one in every), Figures(lines), Figures(rows, "bars")]
    return Section("context", "What context is worth", blocks, note)


def _line(index: int, group: Group, runs: Sequence[Benefit], last: int) -> Series | None:
    """Of one group; runs that looked at other timesteps than its first are left out."""
    xs = runs[0].timesteps
    ys = [statistics.fmean(column) for column in zip(*(r.benefit for r in runs if r.timesteps == xs), strict=True)]
    if len(xs) == 1:
        xs, ys = (0, last), ys * 2
    return Series(group.name, [float(x) for x in xs], ys, index % COLOURS, dashed=index >= COLOURS)


def _bar(index: int, group: Group, runs: Sequence[Benefit]) -> Bar:
    """With the interval over clips of one run, or the range over several."""
    values = [run.benefit_of_draws.value or 0.0 for run in runs]
    mean = statistics.fmean(values)
    interval = bounds(runs[0].benefit_of_draws.ci) if len(runs) == 1 else (min(values), max(values))
    return Bar(group.name, f"{mean:.3f}", [Segment(0.0, max(mean, 0.0), f"c{index % COLOURS}")], interval)
