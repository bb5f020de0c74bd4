"""What the runs' numbers say beside each other: as sentences, as JSON, as a short table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avpretrain.measures.numbers import duration, flops, percent, significant
from avpretrain.measures.runs import LOSSES, Probe, Run, read_runs
from avpretrain.methods.load import config_of
from avpretrain.report.groups import Group, baseline_of, grouped
from avpretrain.report.paired import Paired, paired_difference


@dataclass(frozen=True)
class Comparison:
    """Runs, grouped by config, and the group that savings are measured against."""

    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    baseline: Group

    @classmethod
    def of(cls, paths: Sequence[str | Path]) -> Comparison:
        """Reads run folders.

        Raises:
            UserError: a folder is no run, or is damaged.
        """
        runs = read_runs(paths, config_of)
        groups = grouped(runs)
        return cls(tuple(runs), tuple(groups), baseline_of(groups))

    @property
    def others(self) -> list[Group]:
        return [group for group in self.groups if group is not self.baseline]

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for group in self.groups for task in group.tasks()))

    @cached_property
    def _differences(self) -> dict[tuple[str, int], Paired]:
        """By task and identity of the group."""
        pairs = [(task, group) for group in self.others for task in group.tasks()]
        return {(task, id(group)): paired_difference(task, group, self.baseline) for task, group in pairs}

    def paired(self, task: str, group: Group) -> Paired | None:
        """The paired difference to the baseline; none for the baseline itself, and without a result."""
        return self._differences.get((task, id(group)))

    def flops_saving(self, item: Group | Run) -> float:
        """Share of the baseline's FLOPs per clip that is saved."""
        return 1 - _mean(item, lambda r: r.flops_per_clip) / self.baseline.mean(lambda r: r.flops_per_clip)

    def time_saving(self, item: Group | Run) -> float:
        """Share of the baseline's seconds per clip that is saved."""
        return 1 - _mean(item, seconds_per_clip) / self.baseline.mean(seconds_per_clip)


def _mean(item: Group | Run, value: Any) -> float:
    return item.mean(value) if isinstance(item, Group) else float(value(item))


def seconds_per_clip(run: Run) -> float:
    """Wall clock over clips seen."""
    return run.seconds / run.seen


def shown(probe: Probe) -> str:
    """A probe's value with its interval."""
    value, interval = score(probe), interval_of(probe)
    return f"{value} ({interval})" if interval else value


def score(probe: Probe) -> str:
    """A probe's value: shares in percent, other metrics as they are."""
    return percent(probe.value) if probe.is_share else significant(probe.value)


def interval_of(probe: Probe) -> str:
    """Its interval, '80.6 to 87.6'; empty where it is unknown."""
    if probe.interval is None:
        return ""
    low, high = (f"{100 * v:.1f}" if probe.is_share else significant(v) for v in probe.interval)
    return f"{low} to {high}"


def sentences(comparison: Comparison) -> list[str]:
    """What each group spent and reached beside the baseline, a sentence a group."""
    base, remarks = comparison.baseline, []
    for group in comparison.others:
        parts = [f"{group.name} took {_less(comparison, group)} a clip than {base.name}"]
        for task in group.tasks():
            ours, theirs = group.probe(task), base.probe(task)
            if ours is not None and theirs is not None:
                parts.append(f"{task}: {score(ours)} {ours.metric} against {score(theirs)}")
                if (paired := comparison.paired(task, group)) is not None:
                    parts[-1] += f", {paired.words}"
        remarks.append("; ".join(parts) + ".")
    return remarks


def _less(comparison: Comparison, group: Group) -> str:
    """'6.4% fewer FLOPs and 9.2% less wall clock'."""
    fewer, less = comparison.flops_saving(group), comparison.time_saving(group)
    return (
        f"{percent(abs(fewer))} {'fewer' if fewer >= 0 else 'more'} FLOPs and "
        f"{percent(abs(less))} {'less' if less >= 0 else 'more'} wall clock"
    )


def cautions(comparison: Comparison) -> list[str]:
    """What keeps the numbers from being compared as they stand."""
    runs, remarks = comparison.runs, []
    for run in runs:
        if not run.finished:
            remarks.append(f"{run.name} is not finished: {percent(run.share_done, 0)} of its clips seen.")
    if _differs(runs, "hardware"):
        remarks.append("The runs were made on different hardware: compare FLOPs, not wall clock.")
    if _differs(runs, "data"):
        remarks.append("The runs were trained on different data.")
    return remarks


def _differs(runs: Sequence[Run], key: str) -> bool:
    return len({str(run.info[key]) for run in runs if key in run.info}) > 1


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison in plain JSON types."""
    group_of = {run.path: group.name for group in comparison.groups for run in group.runs}
    several, rows = bool(comparison.others), []
    for run in comparison.runs:
        rows.append(
            {
                "name": run.name,
                "group": group_of[run.path],
                "path": str(run.path),
                "finished": run.finished,
                "clips": run.seen,
                "steps": run.last.get("step"),
                "flops_per_clip": run.flops_per_clip,
                "flops_total": run.flops_total,
                "flops_saving": comparison.flops_saving(run) if several else None,
                "seconds": run.seconds,
                "seconds_saving": comparison.time_saving(run) if several else None,
                "clips_per_second": run.clips_per_second,
                "peak_memory_bytes": run.peak_memory,
                "parameters": run.info.get("parameters"),
                "losses": {name: run.last[name] for name in LOSSES if name in run.last},
                "probes": [
                    {
                        "task": p.task,
                        "metric": p.metric,
                        "value": p.value,
                        "ci": p.interval,
                        "clips": p.seen,
                        "baselines": p.baselines,
                    }
                    for p in run.probes
                ],
            }
        )
    return {
        "baseline": comparison.baseline.name if several else None,
        "runs": rows,
        "differences": [
            {
                "task": task,
                "group": group.name,
                "difference": d.value,
                "ci": d.interval,
                "seeds": d.pairs,
                "reason": d.reason,
            }
            for group in comparison.others
            for task in group.tasks()
            if (d := comparison.paired(task, group)) is not None
        ],
        "cautions": cautions(comparison),
    }


def summary_table(paths: Sequence[str | Path]) -> str:
    """The runs in a few lines of plain text: cost, saving and probes, a line a run.

    Raises:
        UserError: a folder is no run, or is damaged.
    """
    comparison = Comparison.of(paths)
    tasks = comparison.tasks()
    rows = [["run", "FLOPs a clip", "FLOPs in all", "wall clock", "clips/s", *tasks]]
    for run in comparison.runs:
        probes = {probe.task: probe for probe in run.probes}
        cells = [flops(run.flops_per_clip), flops(run.flops_total), duration(run.seconds)]
        cells += [significant(run.clips_per_second), *(shown(probes[t]) if t in probes else "" for t in tasks)]
        rows.append([run.name, *cells])
    floor = {t: max(g.baselines.items(), key=lambda kv: kv[1]) for t in tasks if (g := _first(comparison, t)).baselines}
    if floor:
        best = [f"{percent(floor[t][1])} ({floor[t][0]})" if t in floor else "" for t in tasks]
        rows.append(["best without pretraining", "", "", "", "", *best])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for group in comparison.others:
        lines.append(f"{group.name} took {_less(comparison, group)} a clip than {comparison.baseline.name}")
    return "\n".join(lines)


def _first(comparison: Comparison, task: str) -> Probe:
    return next(p for group in comparison.groups if (p := group.probe(task)) is not None)
