"""The sections of the report that are charts, one function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from avpretrain.config.train import TrainConfig
from avpretrain.cost.clip import COMPONENTS
from avpretrain.cost.run import run_cost
from avpretrain.measures.numbers import flops, percent, signed_percent
from avpretrain.measures.runs import LOSSES, Line, Probe
from avpretrain.report.comparison import Comparison, shown
from avpretrain.report.groups import Group
from avpretrain.report.page import Section, figure, figures, legend
from avpretrain.report.saving import split_saving
from avpretrain.report.svg import Bar, Segment, Series, bars, chart

COLOURS = 12
Axis = tuple[str, str, Callable[[Line], float]]
"""What a chart runs over: its name, its label, and its value on a line of metrics."""


def _axes(comparison: Comparison) -> tuple[Axis, Axis, Axis]:
    unit, name = (60.0, "minutes") if max(run.seconds for run in comparison.runs) < 2 * 3600 else (3600.0, "hours")
    return (
        ("clips", "clips seen", lambda line: float(line["seen"])),
        ("FLOPs", "FLOPs spent", lambda line: float(line["flops_total"])),
        (name, name, lambda line: line["seconds"] / unit),
    )


def _colours(comparison: Comparison) -> list[tuple[str, str]]:
    return [(f"c{i % COLOURS}", group.name) for i, group in enumerate(comparison.groups)]


def _lines(comparison: Comparison, x: Callable[[Line], float], key: str) -> list[Series]:
    """A line for each run, coloured by its group."""
    found = []
    for i, group in enumerate(comparison.groups):
        for run in group.runs:
            lines = [line for line in run.lines if isinstance(line.get(key), int | float)]
            xs, ys = [x(line) for line in lines], [float(line[key]) for line in lines]
            found.append(Series(run.name, xs, ys, i % COLOURS, dashed=i >= COLOURS))
    return found


def _chart(
    comparison: Comparison, key: str, caption: str, axis: int = 0, steps: bool = False, from_zero: bool = False
) -> str:
    name, label, x = _axes(comparison)[axis]
    series = _lines(comparison, x, key)
    note = f"over {name}"
    return figure(
        caption, chart(f"{caption} {note}", series, label, steps=steps, from_zero=from_zero), note, readout=True
    )


def cost_curves(comparison: Comparison) -> Section:
    """Loss and probes against what was spent."""
    items = [_chart(comparison, "loss", "Training loss", axis) for axis in range(3)]
    for task in comparison.tasks():
        for name, label, x in _axes(comparison)[1:]:
            caption = f"{task[:1].upper()}{task[1:]}"
            items.append(figure(caption, _probe_points(comparison, task, label, x), f"over {name}"))
    note = (
        "Losses of different objectives can't be compared: a diffused patch gives its decoder a hint that a mask token "
        "does not, and a higher masking ratio makes the task harder. Probes can."
    )
    return Section("cost", "What the cost buys", legend(_colours(comparison)) + figures(items), note)


def _probe_points(comparison: Comparison, task: str, label: str, x: Callable[[Line], float]) -> str:
    series = []
    for i, group in enumerate(comparison.groups):
        for run in group.runs:
            probes = [p for p in run.probes if p.task == task]
            xs = [x({k: run.at(p.seen, k) for k in ("seen", "flops_total", "seconds")}) for p in probes]
            intervals = [p.interval for p in probes]
            series.append(Series(run.name, xs, [p.value for p in probes], i % COLOURS, intervals))
    return chart(
        f"{task} over {label}", series, label, points=True, y_labels=lambda values: [percent(v, 0) for v in values]
    )


def losses(comparison: Comparison) -> Section | None:
    """Each part of the loss."""
    parts = [key for key in LOSSES[1:] if any(key in run.last for run in comparison.runs)]
    if not parts:
        return None
    items = [_chart(comparison, key, key.replace("_", " ").capitalize()) for key in parts]
    note = "Unweighted. Inter: contrast of sound and picture. Intra: contrast of two masked views of one of them."
    return Section("losses", "Parts of the loss", legend(_colours(comparison)) + figures(items), note)


def schedules(comparison: Comparison) -> Section | None:
    """What moved on the way, and how fast it went."""
    wanted = (
        ("audio_mask_ratio", "Audio masking ratio", {"steps": True}),
        ("video_mask_ratio", "Video masking ratio", {"steps": True}),
        ("batch_size", "Batch size", {"steps": True, "from_zero": True}),
        ("lr", "Learning rate", {"steps": True, "from_zero": True}),
        ("clips_per_second", "Clips a second", {"from_zero": True}),
        ("data_wait_share", "Share of time waiting for data", {"from_zero": True}),
    )
    items = [
        _chart(comparison, key, caption, 0, **options)
        for key, caption, options in wanted
        if any(key in run.last for run in comparison.runs)
    ]
    return Section("schedules", "Schedules and speed", legend(_colours(comparison)) + figures(items)) if items else None


def probes(comparison: Comparison) -> Section | None:
    """Evaluations with their intervals, beside what needs no pretraining."""
    items = []
    for task in comparison.tasks():
        found = [(i, g.name, p) for i, g in enumerate(comparison.groups) if (p := g.probe(task)) is not None]
        rows = [_probe_bar(f"c{i % COLOURS}", name, p) for i, name, p in found]
        floor: Mapping[str, float] = found[0][2].baselines
        rows += [Bar(n, percent(v), [Segment(0.0, v, "plain")], muted=True) for n, v in floor.items()]
        items.append(figure(f"{task[:1].upper()}{task[1:]}", bars(task, rows, 1.0), found[0][2].metric))
    note = "Brackets: 95% interval over clips, or range over seeds if there are several. Grey: without pretraining."
    return Section("probes", "Probes", figures(items, "bars"), note) if items else None


def _probe_bar(css: str, name: str, probe: Probe) -> Bar:
    return Bar(name, shown(probe), [Segment(0.0, probe.value, css)], interval=probe.interval)


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
    key = legend([(f"k{i}", name.replace("_", " ")) for i, name in enumerate(COMPONENTS) if i in used])
    items = [figure("By component", bars("FLOPs of a clip by component", rows, highest) + key, "forward and backward")]
    items += [w for group in comparison.others if (w := _waterfall(comparison.baseline, group))]
    note = (
        "Counted from the configs: matrix products, forward and backward, mean over the whole schedule. Changes are "
        "applied in the order shown; another order would share out the same total differently."
    )
    return Section("flops", "Where the FLOPs go", figures(items, "bars"), note)


def _waterfall(base: Group, group: Group) -> str | None:
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
    return figure(title, bars(title, rows, highest), "FLOPs of a clip")
