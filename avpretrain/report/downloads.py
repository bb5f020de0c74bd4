"""The page's numbers as files inside it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from avpretrain.report.comparison import Comparison, as_json
from avpretrain.report.page import Downloads

ROWS, ALL_ROWS = 200, 2000
"""Of curves, for a run and for all of them together; longer logs are averaged, so that the page stays small."""


def downloads(comparison: Comparison) -> Downloads:
    """Runs and evaluations as a table each, curves as drawn, and all of it but the curves as JSON."""
    report = as_json(comparison)
    return Downloads(
        (
            ("runs.csv", "text/csv", _csv(_runs(report))),
            ("evaluations.csv", "text/csv", _csv(_evaluations(report))),
            ("curves.csv", "text/csv", _csv(_curves(comparison))),
            ("report.json", "application/json", json.dumps(report, indent=1)),
        )
    )


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_inert(value) for value in row] for row in rows)
    return text.getvalue()


def _inert(value: Any) -> Any:
    """A name that a spreadsheet would compute, as text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _runs(report: dict[str, Any]) -> Iterable[Sequence[Any]]:
    plain = [key for key in report["runs"][0] if key not in ("losses", "probes")]
    losses = list(dict.fromkeys(name for run in report["runs"] for name in run["losses"]))
    yield [*plain, *losses]
    for run in report["runs"]:
        yield [*(run[key] for key in plain), *(run["losses"].get(name) for name in losses)]


def _evaluations(report: dict[str, Any]) -> Iterable[Sequence[Any]]:
    """A row a number: of the run, of what needs no pretraining (`features`), and of each paired difference."""
    yield ["run", "task", "features", "metric", "clips", "value", "low", "high"]
    for run in report["runs"]:
        for probe in run["probes"]:
            head = [run["name"], probe["task"]]
            yield [*head, "encoder", probe["metric"], probe["clips"], probe["value"], *(probe["ci"] or ("", ""))]
            for name, value in probe["baselines"].items():
                yield [*head, name, probe["metric"], "", value, "", ""]
    for one in report["differences"]:
        if one["difference"] is not None:
            head = [one["group"], one["task"], f"difference to {report['baseline']}"]
            yield [*head, "", "", one["difference"], *(one["ci"] or ("", ""))]


def _curves(comparison: Comparison) -> Iterable[Sequence[Any]]:
    """A row a line of metrics, or the mean of neighbouring lines of a long log; previews are rows of their own."""
    every = [lines for run in comparison.runs for lines in (run.lines, run.previews)]
    columns = list(dict.fromkeys(key for lines in every for line in lines[-1:] for key in line))
    yield ["run", *columns]
    rows = min(ROWS, max(20, ALL_ROWS // len(comparison.runs)))
    for run in comparison.runs:
        for lines in (run.lines, run.previews):
            size = -(-len(lines) // rows) or 1
            for i in range(0, len(lines), size):
                yield [run.name, *(_mean(line.get(column) for line in lines[i : i + size]) for column in columns)]


def _mean(values: Iterable[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    return f"{sum(numbers) / len(numbers):.6g}" if numbers else ""
