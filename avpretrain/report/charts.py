"""The sections of the report that are charts, one function each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from avpretrain.measures.numbers import flops, percent, signed_percent
from avpretrain.measures.runs import LOSSES, Line, Probe, Run
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.cost import COMPONENTS
from avpretrain.methods.diffmavil.run_cost import run_cost
from avpretrain.report.comparison import Comparison, score, shown
from avpretrain.report.groups import Group
from avpretrain.report.page import Figure, Figures, Legend, Section
from avpretrain.report.saving import split_saving
from avpretrain.report.svg import Bar, BarChart, Chart, Segment, Series, chart, tick_labels

COLOURS = 12
Axis = tuple[str, str, Callable[[Line], float]]
"""What a chart runs over: its name, its label, and its value on a line of metrics."""

SCHEDULES: Mapping[str, tuple[str, Mapping[str, bool]]] = {
    "audio_mask_ratio": ("Audio masking ratio", {"steps": True}),
    "video_mask_ratio": ("Video masking ratio", {"steps": True}),
    "batch_size": ("Batch size", {"steps": True, "from_zero": True}),
    "lr": ("Learning rate", {"steps": True, "from_zero": True}),
    "grad_norm": ("Norm of the gradient", {"from_zero": True}),
    "clips_per_second": ("Clips a second", {"from_zero": True}),
    "data_wait_share": ("Share of time waiting for data", {"from_zero": True}),
}
"""Columns of metrics that have a chart of their own, with its caption and how it is drawn."""

NOT_DRAWN = {"step", "seen", "samples_total", "seconds", "failed_clips", "flops_per_clip", "flops_total",
             "peak_memory_bytes"}  # fmt: skip
PREVIEWS = {
    "recall": "R@1 of preview clips",
    "effective_rank_audio": "Effective rank, audio",
    "effective_rank_video": "Effective rank, video",
}
"""What previews measure, in words."""


def colours(groups: Iterable[tuple[int, Group]]) -> Legend:
    """Which group has which colour."""
    return Legend([(f"c{i % COLOURS}", group.name) for i, group in groups])


def measured(comparison: Comparison, read: Callable[[Run], Any]) -> list[tuple[int, Group, list[Any]]]:
    """Index of each group that has any, the group, and what `read` finds of its runs; runs without are left out."""
    every = [(i, g, [value for run in g.runs if (value := read(run))]) for i, g in enumerate(comparison.groups)]
    return [one for one in every if one[2]]


def words(key: str) -> str:
    """'Reconstruction audio' of reconstruction_audio."""
    return (key[:1].upper() + key[1:]).replace("_", " ")


def percents(values: Sequence[float]) -> list[str]:
    """Labels of an axis of shares."""
    return [f"{label}%" for label in tick_labels([round(100 * v, 9) for v in values])]


def _axes(comparison: Comparison) -> tuple[Axis, Axis, Axis]:
    unit, name = (60.0, "minutes") if max(run.seconds for run in comparison.runs) < 2 * 3600 else (3600.0, "hours")
    return (
        ("clips", "clips seen", lambda line: float(line["seen"])),
        ("FLOPs", "FLOPs spent", lambda line: float(line["flops_total"])),
        (name, name, lambda line: line["seconds"] / unit),
    )


def series(comparison: Comparison, x: Callable[[Line], float], key: str, previews: bool = False) -> list[Series]:
    """A line for each run that has the column, in its metrics or in its previews; coloured by its group."""
    curves = []
    for i, group in enumerate(comparison.groups):
        for run in group.runs:
            lines = [
                line for line in (run.previews if previews else run.lines) if isinstance(line.get(key), int | float)
            ]
            xs, ys = [x(line) for line in lines], [float(line[key]) for line in lines]
            if xs:
                curves.append(Series(run.name, xs, ys, i % COLOURS, dashed=i >= COLOURS))
    return curves


def _chart(
    comparison: Comparison, key: str, caption: str, axis: int = 0, steps: bool = False, from_zero: bool = False
) -> Figure:
    name, label, x = _axes(comparison)[axis]
    lines = series(comparison, x, key)
    drawn = chart(f"{caption} over {name}", lines, label, steps=steps, from_zero=from_zero)
    return Figure(caption, drawn, f"over {name}", readout=True)


def _has(comparison: Comparison, key: str) -> bool:
    return any(isinstance(line.get(key), int | float) for run in comparison.runs for line in run.lines[-1:])


def cost_curves(comparison: Comparison) -> Section:
    """Loss and probes against what was spent."""
    items = [_chart(comparison, "loss", "Training loss", axis) for axis in range(3)]
    for task in comparison.tasks():
        for name, label, x in _axes(comparison)[1:]:
            items.append(Figure(words(task), _probe_points(comparison, task, label, x), f"over {name}"))
    note = (
        "Losses of different objectives can't be compared: a diffused patch gives its decoder a hint that a mask token "
        "does not, and a higher masking ratio makes the task harder. Probes can."
    )
    return Section("cost", "What the cost buys", [colours(enumerate(comparison.groups)), Figures(items)], note)


def _probe_points(comparison: Comparison, task: str, label: str, x: Callable[[Line], float]) -> Chart:
    lines = []
    for i, group in enumerate(comparison.groups):
        for run in group.runs:
            probes = sorted((p for p in run.probes if p.task == task), key=lambda p: p.seen)
            xs = [x({k: run.at(p.seen, k) for k in ("seen", "flops_total", "seconds")}) for p in probes]
            intervals = [p.interval for p in probes]
            lines.append(Series(run.name, xs, [p.value for p in probes], i % COLOURS, intervals))
    share = all(p.is_share for run in comparison.runs for p in run.probes if p.task == task)
    return chart(
        f"{task} over {label}", lines, label, points=True, y_labels=percents if share else tick_labels
    )  # fmt: skip


def losses(comparison: Comparison) -> Section | None:
    """Each part of the loss."""
    items = [_chart(comparison, key, words(key)) for key in LOSSES[1:] if _has(comparison, key)]
    if not items:
        return None
    note = "Unweighted. Inter: contrast of audio and video. Intra: contrast of two masked views of one of them."
    return Section("losses", "Parts of the loss", [colours(enumerate(comparison.groups)), Figures(items)], note)


def schedules(comparison: Comparison) -> Section | None:
    """What changed during training, how fast it went, and whatever else the method logged."""
    items = [_chart(comparison, k, c, **how) for k, (c, how) in SCHEDULES.items() if _has(comparison, k)]
    known = {*LOSSES, *SCHEDULES, *NOT_DRAWN}
    more = dict.fromkeys(key for run in comparison.runs for key in run.last if key not in known)
    items += [_chart(comparison, key, words(key)) for key in more if _has(comparison, key)]
    if not items:
        return None
    return Section(
        "schedules", "Schedules, gradient and speed", [colours(enumerate(comparison.groups)), Figures(items)]
    )


def previews(comparison: Comparison) -> Section | None:
    """What was measured on held-out clips during training."""
    name, label, x = _axes(comparison)[0]
    items = []
    for key in dict.fromkeys(key for run in comparison.runs for line in run.previews for key in line if key != "seen"):
        if lines := series(comparison, x, key, previews=True):
            caption = PREVIEWS.get(key, words(key))
            drawn = chart(f"{caption} over {name}", lines, label, points=True, from_zero=True)
            items.append(Figure(caption, drawn, f"over {name}"))
    if not items:
        return None
    note = (
        "Of the few clips that each preview shows, so a glance and no result. R@1: share of clips whose audio finds "
        "its own video first among them. Effective rank: how many directions the embeddings spread over; 1 is collapse."
    )
    return Section(
        "previews", "Measured during training", [colours(enumerate(comparison.groups)), Figures(items)], note
    )


def probes(comparison: Comparison) -> Section | None:
    """Evaluations with their intervals, next to what needs no pretraining."""
    items = []
    for task in comparison.tasks():
        by_group = [(i, g, p) for i, g in enumerate(comparison.groups) if (p := g.probe(task)) is not None]
        rows = [_probe_bar(comparison, task, i, group, p) for i, group, p in by_group]
        first = by_group[0][2]
        for name, value in first.baselines.items():
            shown_value = score(dataclasses.replace(first, value=value))
            rows.append(Bar(name, shown_value, [Segment(0.0, value, "plain")], muted=True))
        highest = max(segment.end for row in rows for segment in row.segments)
        items.append(Figure(words(task), BarChart(task, rows, 1.0 if first.is_share else highest), first.metric))
    note = "Brackets: 95% interval over clips, or range over seeds if there are several. Grey: without pretraining."
    if comparison.others:
        note += (
            f" Below a bar: the difference to {comparison.baseline.name} on the clips both tested, with a paired 95% "
            "interval, or why there is none."
        )
    return Section("probes", "Probes", [Figures(items, "bars")], note) if items else None


def _probe_bar(comparison: Comparison, task: str, index: int, group: Group, probe: Probe) -> Bar:
    paired = comparison.paired(task, group)
    segment = Segment(0.0, max(0.0, probe.value), f"c{index % COLOURS}")
    return Bar(group.name, shown(probe), [segment], probe.interval, remark=paired.words if paired else "")


def where_flops_go(comparison: Comparison) -> Section | None:
    """FLOPs of a clip by component, and the way from the baseline to each other group; of DiffMAViL's runs."""
    costs = [
        (group, run_cost(group.config, int(group.runs[0].last["samples_total"])))
        for group in comparison.groups
        if isinstance(group.config, TrainConfig)
    ]
    if not costs:
        return None
    highest = max(cost.per_clip for _, cost in costs)
    rows, used = [], set()
    for group, cost in costs:
        start, segments = 0.0, []
        for i, name in enumerate(COMPONENTS):
            size = cost.components[name].training
            title = f"{name.replace('_', ' ')}: {flops(size)}, {percent(size / cost.per_clip)}"
            segments.append(Segment(start, start + size, f"k{i}", title))
            start += size
            used |= {i} if size else set()
        rows.append(Bar(group.name, flops(cost.per_clip), segments))
    key = Legend([(f"k{i}", name.replace("_", " ")) for i, name in enumerate(COMPONENTS) if i in used])
    drawn = BarChart("FLOPs of a clip by component", rows, highest)
    items = [Figure("By component", drawn, "forward and backward", key=key)]
    items += [w for group in comparison.others if (w := _waterfall(comparison.baseline, group))]
    note = (
        "Counted from the configs: matrix products, forward and backward, mean over the whole schedule. Changes are "
        "applied in the order shown; another order would share out the same total differently."
    )
    return Section("flops", "Where the FLOPs go", [Figures(items, "bars")], note)


def _waterfall(base: Group, group: Group) -> Figure | None:
    before, after = base.config, group.config
    if not isinstance(before, TrainConfig) or not isinstance(after, TrainConfig):
        return None
    changes = split_saving(before, after, int(group.runs[0].last["samples_total"]))
    if not changes:
        return None
    start, end = changes[0].before, changes[-1].after
    highest = max(start, *(c.after for c in changes))
    rows = [Bar(base.name, flops(start), [Segment(0.0, start, "plain")])]
    for change in changes:
        delta = change.after - change.before
        low, high = sorted((change.before, change.after))
        css = "less" if delta <= 0 else "more"
        rows.append(Bar(change.label, signed_percent(delta / start), [Segment(low, high, css)]))
    rows.append(Bar(group.name, f"{flops(end)}, {signed_percent(end / start - 1)}", [Segment(0.0, end, "plain")]))
    title = f"From {base.name} to {group.name}"
    return Figure(title, BarChart(title, rows, highest), "FLOPs of a clip")
