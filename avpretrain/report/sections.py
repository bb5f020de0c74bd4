"""The sections of the report that are words, numbers and pictures, one function each, and the order of all sections."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from avpretrain.measures.numbers import duration, flops, percent, si, significant
from avpretrain.measures.runs import Run
from avpretrain.report.charts import COLOURS, cost_curves, losses, previews, probes, schedules, where_flops_go
from avpretrain.report.classes import class_table
from avpretrain.report.comparison import Comparison, interval_of, score, shown
from avpretrain.report.context_charts import contexts
from avpretrain.report.downloads import downloads
from avpretrain.report.groups import Group
from avpretrain.report.language import held_out
from avpretrain.report.listening import listening
from avpretrain.report.page import EMPTY, Card, Cards, Cell, Figure, Figures, Picture, PictureSequence, Section, Table
from avpretrain.report.saving import config_differences
from avpretrain.report.spectrum_charts import spectra
from avpretrain.report.windows import windows

MOMENTS = 6
"""Reconstructions of a run that the page holds: the newest, and earlier ones evenly spread."""


def cards(comparison: Comparison) -> Section:
    """The main numbers of each group."""
    items = [_card(comparison, i, group) for i, group in enumerate(comparison.groups)]
    several = any(len(group.runs) > 1 for group in comparison.groups)
    note = "Means over the seeds of one config; the range of a probe is over seeds." if several else ""
    return Section("overview", "Overview", [Cards(items)], note)


def _card(comparison: Comparison, index: int, group: Group) -> Card:
    seeds = f"{len(group.runs)} seeds, " if len(group.runs) > 1 else ""
    saved, faster = _against_baseline(comparison, group)
    rows = [
        ("FLOPs in all", flops(group.mean(lambda r: r.flops_total)), ""),
        ("wall clock", duration(group.mean(lambda r: r.seconds)), faster),
        ("clips a second", significant(group.mean(lambda r: r.clips_per_second)), ""),
    ]
    for task in group.tasks():
        if (probe := group.probe(task)) is not None:
            rows.append((f"{task}, {probe.metric}", score(probe), interval_of(probe)))
    return Card(
        title=group.name,
        css=f"c{index % COLOURS}",
        note=f"{seeds}{si(group.mean(lambda r: float(r.seen)))} clips seen",
        number=flops(group.mean(lambda r: r.flops_per_clip)),
        remark=f"to train on a clip{saved}",
        rows=rows,
    )


def _against_baseline(comparison: Comparison, group: Group) -> tuple[str, str]:
    """FLOPs and wall clock of a clip against the baseline's, in words; nothing where there is nothing to compare."""
    if not comparison.others:
        return "", ""
    if group is comparison.baseline:
        return ", baseline", ""
    saved, faster = comparison.flops_saving(group), comparison.time_saving(group)
    return (
        f", {percent(abs(saved))} {'saved' if saved >= 0 else 'more'}",
        f"{percent(abs(faster))} {'less' if faster >= 0 else 'more'} a clip",
    )


def runs_table(comparison: Comparison) -> Section:
    """Every run, every number."""
    tasks = comparison.tasks()
    headings = ["run", "clips", "FLOPs a clip", "saved", "FLOPs in all", "wall clock", "saved a clip", "clips/s",
                "waiting for data", "peak memory", "parameters", "final loss", *tasks]  # fmt: skip
    rows = []
    for run in comparison.runs:
        waited, parameters = run.last.get("data_wait_share"), run.info.get("parameters")
        rows.append(
            [
                Cell(run.name),
                Cell(f"{run.seen:,}", run.seen),
                Cell(flops(run.flops_per_clip), run.flops_per_clip),
                _saving(comparison, run, comparison.flops_saving(run)),
                Cell(flops(run.flops_total), run.flops_total),
                Cell(duration(run.seconds), run.seconds),
                _saving(comparison, run, comparison.time_saving(run)),
                Cell(significant(run.clips_per_second), run.clips_per_second),
                Cell(percent(waited), waited) if isinstance(waited, int | float) else EMPTY,
                Cell(f"{si(run.peak_memory)}B", run.peak_memory) if run.peak_memory else EMPTY,
                Cell(si(parameters), parameters) if isinstance(parameters, int) else EMPTY,
                Cell(significant(run.last["loss"]), run.last["loss"]),
                *(Cell(shown(p), p.value) if (p := run.probe(task)) is not None else EMPTY for task in tasks),
            ]
        )
    full = [i for i in range(len(headings)) if any(row[i].text for row in rows)]
    table = Table("All runs", [headings[i] for i in full], [[row[i] for i in full] for row in rows])
    note = "A click on a heading sorts by it." if len(rows) > 1 else ""
    return Section("runs", "All runs", [table, downloads(comparison)], note)


def _saving(comparison: Comparison, run: Run, saving: float) -> Cell:
    """Against the baseline; of the only run of the baseline that it is one, and nothing where all runs are alike."""
    if not comparison.others:
        return EMPTY
    if [run] == list(comparison.baseline.runs):
        return Cell("baseline", 0.0)
    return Cell(percent(saving), saving)


def reconstructions(comparison: Comparison) -> Section | None:
    """Pictures of the first run of each group that has any, over time."""
    items = []
    for group in comparison.groups:
        run = next((run for run in group.runs if run.pictures), None)
        if run is not None:
            many = len(run.pictures)
            kept = sorted({round(i * (many - 1) / max(1, MOMENTS - 1)) for i in range(MOMENTS)})
            paths = [(run.pictures[i], _moment(run.pictures[i].stem)) for i in kept]
            shown_pictures = [Picture.of(p, f"Reconstructions by {group.name} {when}", when) for p, when in paths]
            items.append(Figure(group.name, PictureSequence(shown_pictures), paths[-1][1] if len(paths) == 1 else ""))
    if not items:
        return None
    note = "What went in, what the encoder saw of it, and what the decoders made of the rest."
    return Section("pictures", "Reconstructions", [Figures(items, "pictures")], note)


def _moment(stem: str) -> str:
    return f"after {int(stem):,} clips" if stem.isdigit() else stem


def results(comparison: Comparison) -> Section | None:
    """What evaluations drew of each group's first run that has any: confusions, classes, maps, retrieved clips."""
    items = []
    for group in comparison.groups:
        for path in next((run.results for run in group.runs if run.results), ()):
            task = path.stem.replace("_", " ").replace("-", ", ")
            items.append(Figure(group.name, Picture.of(path, f"{task} by {group.name}"), task))
    if not items:
        return None
    note = "On test clips; drawn by the verbs probe and retrieve with --pictures. A click shows a picture in full size."
    return Section("results", "Evaluations in pictures", [Figures(items, "pictures")], note)


def config_table(comparison: Comparison) -> Section | None:
    """Keys on which the configs differ: of each group, or of each run where groups share a name."""
    names = [group.name for group in comparison.groups]
    told_apart = len(set(names)) == len(names)
    configs = {item.name: item.config for item in (comparison.groups if told_apart else comparison.runs)}
    rows, names = config_differences(configs), list(configs)
    if not rows:
        return None
    cells = [[Cell(key), *(Cell(_value(row[name])) for name in names)] for key, row in rows.items()]
    title = "Differences in config"
    return Section("config", title, [Table(title, ["key", *names], cells, sortable=False)])


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def provenance(comparison: Comparison) -> Section | None:
    """What the runs were made with."""
    rows = [[Cell(run.name), *_made_with(run)] for run in comparison.runs if run.info]
    if not rows:
        return None
    headings = ["run", "command", "commit", "hardware", "versions", "data"]
    table = Table("How the runs were made", headings, rows, sortable=False)
    return Section("provenance", "How they were made", [table])


def _made_with(run: Run) -> Sequence[Cell]:
    info = run.info
    hardware, versions, data = (info.get(key) or {} for key in ("hardware", "versions", "data"))
    gpus = ", ".join(hardware.get("gpus") or [])
    machine = gpus or f"{hardware.get('processor', '')}, {hardware.get('cores', '?')} cores"
    shown_versions = ", ".join(f"{k} {versions[k]}" for k in ("avpretrain", "python", "torch") if k in versions)
    clips = f"{data['clips']:,} clips, {str(data.get('fingerprint', ''))[:12]}" if "clips" in data else ""
    return (
        Cell(shlex.join(map(str, info.get("command") or [])), copy=True),
        Cell(str(info.get("commit") or "")),
        Cell(machine),
        Cell(shown_versions),
        Cell(clips),
    )


SECTIONS: tuple[Callable[[Comparison], Section | None], ...] = (
    cards,
    runs_table,
    cost_curves,
    probes,
    class_table,
    where_flops_go,
    losses,
    held_out,
    schedules,
    previews,
    reconstructions,
    listening,
    results,
    spectra,
    contexts,
    windows,
    config_table,
    provenance,
)
"""In order of appearance; one that returns none is left out. A new section is one function and its line here."""
