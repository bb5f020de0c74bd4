"""The sections of the report, one function each. A new figure is one function and its place in `SECTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from avpretrain.efficiency.comparison import LOSSES, Comparison, shown
from avpretrain.efficiency.flops import run_cost
from avpretrain.efficiency.numbers import duration, flops, percent, si, signed_percent, significant
from avpretrain.efficiency.page import Cell, Section, figure, figures, legend, picture, table
from avpretrain.efficiency.runs import Group, Line, Probe, Run
from avpretrain.efficiency.saving import config_differences, split_saving
from avpretrain.efficiency.svg import Bar, Segment, Series, bars, chart
from avpretrain.models.cost import COMPONENTS

COLOURS = 8
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


# --- one function a section ------------------------------------------------------------------------------------------


def cards(comparison: Comparison) -> Section:
    """The main numbers of each group."""
    items = [_card(comparison, i, group) for i, group in enumerate(comparison.groups)]
    several = any(len(group.runs) > 1 for group in comparison.groups)
    note = "Means over the seeds of one config; the range of a probe is over seeds." if several else ""
    return Section("overview", "Overview", f'<div class="cards">{"".join(items)}</div>', note)


def _card(comparison: Comparison, index: int, group: Group) -> str:
    is_base = group is comparison.baseline
    saving = comparison.flops_saving(group)
    remark = "baseline" if is_base else f"{percent(abs(saving))} {'saved' if saving >= 0 else 'more'}"
    seeds = f"{len(group.runs)} seeds, " if len(group.runs) > 1 else ""
    clips = si(group.mean(lambda r: float(r.seen)))
    rows = [
        ("FLOPs in all", flops(group.mean(lambda r: r.flops_total)), ""),
        ("wall clock", duration(group.mean(lambda r: r.seconds)), _time_remark(comparison, group)),
        ("clips a second", significant(group.mean(lambda r: r.clips_per_second)), ""),
    ]
    for task in group.tasks():
        probe = group.probe(task)
        if probe is not None:
            low_high = shown(probe).partition(" (")[2].rstrip(")")
            rows.append((f"{task}, {probe.metric}", percent(probe.value), low_high))
    cells = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}{f'<small>{escape(more)}</small>' if more else ''}</dd>"
        for name, value, more in rows
    )
    number = flops(group.mean(lambda r: r.flops_per_clip))
    return (
        f'<article class="card c{index % COLOURS}"><h3>{escape(group.name)}</h3>'
        f'<p class="note">{seeds}{clips} clips seen</p>'
        f'<p class="big">{number}<small>to train on a clip, {remark}</small></p><dl>{cells}</dl></article>'
    )


def _time_remark(comparison: Comparison, group: Group) -> str:
    if group is comparison.baseline:
        return ""
    saving = comparison.time_saving(group)
    return f"{percent(abs(saving))} {'less' if saving >= 0 else 'more'} a clip"


def runs_table(comparison: Comparison) -> Section:
    """Every run, every number."""
    tasks = comparison.tasks()
    headings = ["run", "clips", "FLOPs a clip", "saved", "FLOPs in all", "wall clock", "saved a clip", "clips/s",
                "waiting for data", "peak memory", "parameters", "final loss", *tasks]  # fmt: skip
    rows = []
    for run in comparison.runs:
        probes = {probe.task: probe for probe in run.probes}
        waited, parameters = run.last.get("data_wait_share"), run.info.get("parameters")
        flops_saved, time_saved = comparison.flops_saving(run), comparison.time_saving(run)
        rows.append(
            [
                Cell(run.name),
                Cell(f"{run.seen:,}", run.seen),
                Cell(flops(run.flops_per_clip), run.flops_per_clip),
                Cell(percent(flops_saved), flops_saved),
                Cell(flops(run.flops_total), run.flops_total),
                Cell(duration(run.seconds), run.seconds),
                Cell(percent(time_saved), time_saved),
                Cell(significant(run.clips_per_second), run.clips_per_second),
                Cell(percent(waited), waited) if isinstance(waited, int | float) else Cell("", -1.0),
                Cell(f"{si(run.peak_memory)}B" if run.peak_memory else "", run.peak_memory),
                Cell(si(parameters), parameters) if isinstance(parameters, int) else Cell("", -1.0),
                Cell(significant(run.last["loss"]), run.last["loss"]),
                *(Cell(shown(probes[t]), probes[t].value) if t in probes else Cell("", -1.0) for t in tasks),
            ]
        )
    full = [i for i in range(len(headings)) if any(row[i].text for row in rows)]
    body = table([headings[i] for i in full], [[row[i] for i in full] for row in rows], "All runs")
    return Section("runs", "All runs", body, "A click on a heading sorts by it.")


def cost_curves(comparison: Comparison) -> Section:
    """Loss and probes against what was spent."""
    items = [_chart(comparison, "loss", "Training loss", axis) for axis in range(3)]
    for task in comparison.tasks():
        for name, label, x in _axes(comparison)[1:]:
            caption = f"{task[:1].upper()}{task[1:]}"
            items.append(figure(caption, _probe_points(comparison, task, label, x), f"over {name}"))
    note = (
        "The loss of one objective can't be held against that of another: a diffused patch gives its decoder a hint that "
        "a mask token does not, and a higher masking ratio makes the task harder. Probes can be compared."
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
        ("lr", "Learning rate", {"from_zero": True}),
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


def where_flops_go(comparison: Comparison) -> Section:
    """FLOPs of a clip by component, and the way from the baseline to each other group."""
    costs = [(g, run_cost(g.config, int(g.runs[0].last["samples_total"]))) for g in comparison.groups]
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
    changes = split_saving(base.config, group.config, int(group.runs[0].last["samples_total"]))
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


def reconstructions(comparison: Comparison) -> Section | None:
    """The newest picture of each group."""
    items = []
    for group in comparison.groups:
        path = next((run.pictures[-1] for run in group.runs if run.pictures), None)
        if path is not None:
            items.append(figure(group.name, picture(path, f"Reconstructions by {group.name}"), path.stem.lstrip("0")))
    if not items:
        return None
    note = "Newest of each run: what went in, what the encoder saw of it, and what the decoders made of the rest."
    return Section("pictures", "Reconstructions", figures(items, "pictures"), note)


def config_table(comparison: Comparison) -> Section | None:
    """Keys on which the configs differ."""
    rows = config_differences({run.name: run.config for run in comparison.runs})
    if not rows:
        return None
    names = [run.name for run in comparison.runs]
    cells = [[Cell(key), *(Cell(_value(row[name])) for name in names)] for key, row in rows.items()]
    return Section("config", "Differences in config", table(["key", *names], cells, "Differences in config", False))


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def provenance(comparison: Comparison) -> Section | None:
    """What the runs were made with."""
    rows = [[Cell(run.name), *(Cell(text) for text in _made_with(run))] for run in comparison.runs if run.info]
    if not rows:
        return None
    headings = ["run", "command", "commit", "hardware", "versions", "data"]
    return Section("provenance", "How they were made", table(headings, rows, "How the runs were made", False))


def _made_with(run: Run) -> Sequence[str]:
    info = run.info
    hardware, versions, data = (info.get(key) or {} for key in ("hardware", "versions", "data"))
    gpus = ", ".join(hardware.get("gpus") or [])
    machine = gpus or f"{hardware.get('processor', '')}, {hardware.get('cores', '?')} cores"
    shown_versions = ", ".join(f"{k} {versions[k]}" for k in ("avpretrain", "python", "torch") if k in versions)
    clips = f"{data['clips']:,} clips, {str(data.get('fingerprint', ''))[:12]}" if "clips" in data else ""
    return (
        " ".join(map(str, info.get("command") or [])),
        str(info.get("commit") or ""),
        machine,
        shown_versions,
        clips,
    )


SECTIONS: tuple[Callable[[Comparison], Section | None], ...] = (
    cards,
    runs_table,
    cost_curves,
    probes,
    where_flops_go,
    losses,
    schedules,
    reconstructions,
    config_table,
    provenance,
)
"""In order of appearance; one that returns none is left out."""
