"""The report's section on classes: how well each one is recognised, from the scores next to the results."""

from __future__ import annotations

import dataclasses
import statistics

from avpretrain.core.errors import UserError
from avpretrain.measures.numbers import percent
from avpretrain.measures.runs import Run
from avpretrain.report.comparison import Comparison
from avpretrain.report.groups import Group
from avpretrain.report.page import EMPTY, Cell, Section, Table

OPEN = 30
"""Classes up to which the only table is open; others are folded."""
Values = dict[str, tuple[float, int]]
"""Class -> accuracy or average precision, and test clips."""


def class_table(comparison: Comparison) -> Section | None:
    """A table for each task: accuracy (or average precision) by class of each group, mean over its seeds."""
    tables = [table for task in comparison.tasks() if (table := _table(comparison, task)) is not None]
    if not tables:
        return None
    if len(tables) == 1 and len(tables[0].rows) <= OPEN:
        tables = [dataclasses.replace(tables[0], folded="")]
    note = (
        "Accuracy on each class's test clips; where clips have several labels, average precision. Few clips tell "
        "little. Means over seeds."
    )
    return Section("classes", "By class", tables, note)


def _table(comparison: Comparison, task: str) -> Table | None:
    columns = [(group, values) for group in comparison.groups if (values := _of_group(group, task))]
    if not columns:
        return None
    counts = {name: count for _, values in reversed(columns) for name, (_, count) in values.items()}
    headings = ["class", "test clips", *(group.name for group, _ in columns)]
    two = len(columns) == 2
    rows = []
    for name, count in counts.items():
        cells = [Cell(percent(v[name][0]), v[name][0]) if name in v else EMPTY for _, v in columns]
        row = [Cell(name), Cell(f"{count:,}", count), *cells]
        if two:
            row.append(_gain(*(values.get(name) for _, values in columns)))
        rows.append(row)
    if two:
        headings.append("second less first")
    label = f"{task}, {len(rows)} classes"
    return Table(label, headings, rows, folded=label)


def _gain(first: tuple[float, int] | None, second: tuple[float, int] | None) -> Cell:
    if first is None or second is None:
        return EMPTY
    gain = second[0] - first[0]
    return Cell(f"{100 * gain:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0"), gain)


def _of_group(group: Group, task: str) -> Values:
    """Means over the runs that have scores."""
    every = [values for run in group.runs if (values := by_class(run, task))]
    if not every:
        return {}
    return {
        name: (statistics.fmean(values[name][0] for values in every if name in values), count)
        for name, (_, count) in every[0].items()
    }


def by_class(run: Run, task: str) -> Values:
    """Of a run's last result of a task; empty without scores of clips, and of retrieval, which has no classes."""
    from avpretrain.evaluation.predictions import Predictions, class_values, load_scored
    from avpretrain.evaluation.results import predictions_path

    probe = run.probe(task)
    if probe is None or probe.path is None or not predictions_path(probe.path).is_file():
        return {}
    try:
        scored = load_scored(predictions_path(probe.path))
    except UserError:
        return {}  # what is wrong with it is said where it is compared
    if not isinstance(scored, Predictions):
        return {}
    value_C, count_C = class_values(scored)
    return {
        name: (float(value), int(count))
        for name, value, count in zip(scored.classes, value_C, count_C, strict=True)
        if count
    }
