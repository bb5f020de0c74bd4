"""The sections of the report that are words, numbers and pictures, one function each, and the order of all sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from avpretrain.core.terminal import escape
from avpretrain.measures.numbers import duration, flops, percent, si, significant
from avpretrain.measures.runs import Run
from avpretrain.report.charts import COLOURS, cost_curves, losses, probes, schedules, where_flops_go
from avpretrain.report.comparison import Comparison, shown
from avpretrain.report.context_charts import contexts
from avpretrain.report.groups import Group
from avpretrain.report.language import held_out
from avpretrain.report.page import Cell, Section, figure, figures, picture, table
from avpretrain.report.saving import config_differences
from avpretrain.report.spectrum_charts import spectra


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


def reconstructions(comparison: Comparison) -> Section | None:
    """The newest picture of each group."""
    items = []
    for group in comparison.groups:
        path = next((run.pictures[-1] for run in group.runs if run.pictures), None)
        if path is not None:
            image = picture(path, f"Reconstructions by {group.name}")
            items.append(figure(group.name, image, f"after {int(path.stem):,} clips" if path.stem.isdigit() else ""))
    if not items:
        return None
    note = "Newest of each run: what went in, what the encoder saw of it, and what the decoders made of the rest."
    return Section("pictures", "Reconstructions", figures(items, "pictures"), note)


def results(comparison: Comparison) -> Section | None:
    """What evaluations drew of each group's first run that has any: confusions, classes, maps, retrieved clips."""
    items = []
    for group in comparison.groups:
        for path in next((run.results for run in group.runs if run.results), ()):
            task = path.stem.replace("_", " ").replace("-", ", ")
            items.append(figure(group.name, picture(path, f"{task} by {group.name}"), task))
    if not items:
        return None
    note = "On test clips; drawn by the verbs probe and retrieve with --pictures."
    return Section("results", "Evaluations in pictures", figures(items, "pictures"), note)


def config_table(comparison: Comparison) -> Section | None:
    """Keys on which the configs differ: of each group, or of each run where groups share a name."""
    names = [group.name for group in comparison.groups]
    told_apart = len(set(names)) == len(names)
    configs = {item.name: item.config for item in (comparison.groups if told_apart else comparison.runs)}
    rows, names = config_differences(configs), list(configs)
    if not rows:
        return None
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
    held_out,
    schedules,
    reconstructions,
    results,
    spectra,
    contexts,
    config_table,
    provenance,
)
"""In order of appearance; one that returns none is left out. A new section is one function and its line here."""
