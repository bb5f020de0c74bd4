"""The report's section on reconstructed spectrograms: what share of hidden detail is missed, bin by bin."""

from __future__ import annotations

import statistics

from avpretrain.measures.numbers import percent
from avpretrain.measures.runs import Run
from avpretrain.measures.scores import bounds
from avpretrain.measures.studies import MissedDetail, Spectrum
from avpretrain.report.charts import COLOURS, colours, measured, percents
from avpretrain.report.comparison import Comparison
from avpretrain.report.groups import Group
from avpretrain.report.page import Block, Figure, Figures, Section
from avpretrain.report.svg import Bar, BarChart, Segment, Series, chart

METHODS = {"one_step": "one step", "sampled": "sampled"}
"""Names of reconstructions in results, and in words."""


def spectrum_of(run: Run) -> dict[str, MissedDetail]:
    """Method -> what `avpretrain spectrum` found of a run; empty where it was not measured.

    Raises:
        UserError: the result is damaged.
    """
    path = next(iter(sorted((run.path / "eval").glob("spectrum*.json"))), None)
    if path is None:
        return {}
    methods = Spectrum.read(path, "spectrum", "avpretrain spectrum").methods
    return {name: methods[name] for name in METHODS if name in methods}


def spectra(comparison: Comparison) -> Section | None:
    """Missed detail and the detail's own energy, by mel bin and in the upper half."""
    every = measured(comparison, spectrum_of)
    if not every:
        return None
    items = []
    for method, words in METHODS.items():
        lines = [_mean_line(i, g, [f[method] for f in measurements if method in f]) for i, g, measurements in every]
        series = [line for line in lines if line is not None]
        if series:
            drawn = chart(f"Detail missed by mel bin, {words}", series, "mel bin", y_labels=percents)
            items.append(Figure("Detail missed", drawn, f"{words}, by mel bin", readout=True))
    rows = [
        bar
        for i, group, measurements in every
        for method in METHODS
        if (bar := _bar(i, group, method, [f[method] for f in measurements if method in f])) is not None
    ]
    highest = max(segment.end for row in rows for segment in row.segments)
    upper = Figure("High detail missed", BarChart("High detail missed", rows, highest), "upper half of the mel bins")
    note = (
        "Hidden patches of held-out spectrograms, each at its own mean and variance: the share of the energy of their "
        "detail that the reconstruction misses. One step: the decoder's word on pure noise or mask tokens. Sampled: "
        "the reverse chain of diffusion. Kept: the energy of the reconstruction's own detail; a blur has little of it. "
        "Means over seeds."
    )
    blocks: list[Block] = [colours(one[:2] for one in every), Figures(items), Figures([upper], "bars")]
    return Section("spectra", "Spectrograms by frequency", blocks, note)


def _mean_line(index: int, group: Group, runs: list[MissedDetail]) -> Series | None:
    if not runs:
        return None
    ys = [statistics.fmean(values) for values in zip(*(run.missed_by_mel for run in runs), strict=True)]
    return Series(group.name, [float(m + 1) for m in range(len(ys))], ys, index % COLOURS, dashed=index >= COLOURS)


def _bar(index: int, group: Group, method: str, runs: list[MissedDetail]) -> Bar | None:
    """One group's missed share, with the interval over clips of one run, or the range over several."""
    values = [run.missed_high.value for run in runs if run.missed_high.value is not None]
    if not values:
        return None
    value, low_high = statistics.fmean(values), (min(values), max(values))
    kept = percent(statistics.fmean(run.detail_high.value or 0.0 for run in runs))
    interval = low_high if len(runs) > 1 else bounds(runs[0].missed_high.ci)
    label = f"{group.name}, {METHODS[method]}"
    return Bar(label, f"{percent(value)}, kept {kept}", [Segment(0.0, value, f"c{index % COLOURS}")], interval)
