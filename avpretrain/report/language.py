"""The report's section on language models: what they know of held-out text while they train."""

from __future__ import annotations

from avpretrain.measures.numbers import significant
from avpretrain.methods.openelm.held_out_log import read_held_out
from avpretrain.report.charts import COLOURS, colours
from avpretrain.report.comparison import Comparison
from avpretrain.report.page import EMPTY, Cell, Figure, Figures, Section, Table
from avpretrain.report.svg import Series, chart

MEASURES = (("bits_per_byte", "Bits per byte"), ("perplexity", "Perplexity"))


def held_out(comparison: Comparison) -> Section | None:
    """Curves over tokens seen, and where they ended."""
    curves = [
        (i, group, run, lines)
        for i, group in enumerate(comparison.groups)
        for run in group.runs
        if (lines := read_held_out(run.path))
    ]
    if not curves:
        return None
    items = []
    for key, caption in MEASURES:
        series = [
            Series(run.name, [float(x["seen"]) for x in lines], [float(x[key]) for x in lines], i % COLOURS)
            for i, _, run, lines in curves
            if all(key in line for line in lines)
        ]
        items.append(Figure(caption, chart(f"{caption} of held-out text", series, "windows seen"), readout=True))
    rows = [
        [
            Cell(run.name),
            *(Cell(significant(lines[-1][k], 4), lines[-1][k]) if k in lines[-1] else EMPTY for k, _ in MEASURES),
            Cell(f"{lines[-1].get('tokens', 0):,}", lines[-1].get("tokens", 0)),
        ]
        for _, _, run, lines in curves
    ]
    table = Table("Held-out text", ["run", *(caption for _, caption in MEASURES), "tokens measured"], rows)
    note = "By checkpoint. Perplexities of different tokenizers can't be compared; bits per byte can."
    return Section("held-out", "Held-out text", [colours(enumerate(comparison.groups)), Figures(items), table], note)
