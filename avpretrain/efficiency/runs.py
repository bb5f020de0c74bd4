"""Reading run folders for the report, and grouping runs that differ only in their seed."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from avpretrain.config import TrainConfig, from_dict, to_dict
from avpretrain.errors import UserError
from avpretrain.files import read_json

Line = dict[str, Any]
"""One line of metrics.jsonl."""

NEEDED = ("seen", "samples_total", "loss", "seconds", "flops_total")


@dataclass(frozen=True, slots=True)
class Probe:
    """One evaluation of a run: a number, its 95% interval, and what needs no pretraining gets."""

    task: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    baselines: dict[str, float]
    seen: int
    """Clips that the evaluated weights had seen."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder says."""

    path: Path
    name: str
    config: TrainConfig
    info: dict[str, Any]
    """run.json: versions, hardware, data."""
    lines: tuple[Line, ...]
    probes: tuple[Probe, ...]
    pictures: tuple[Path, ...]
    """Reconstructions, in order of clips seen."""

    @property
    def last(self) -> Line:
        return self.lines[-1]

    @property
    def seen(self) -> int:
        return int(self.last["seen"])

    @property
    def share_done(self) -> float:
        return min(1.0, self.seen / self.last["samples_total"])

    @property
    def finished(self) -> bool:
        return self.share_done == 1

    @property
    def seconds(self) -> float:
        """Wall clock spent on training."""
        return float(self.last["seconds"])

    @property
    def flops_total(self) -> float:
        return float(self.last["flops_total"])

    @property
    def flops_per_clip(self) -> float:
        return self.flops_total / self.seen

    @property
    def clips_per_second(self) -> float:
        return self.seen / self.seconds if self.seconds else 0.0

    @property
    def peak_memory(self) -> int:
        return max(int(line.get("peak_memory_bytes") or 0) for line in self.lines)

    def at(self, seen: int, key: str) -> float:
        """A column of the metrics where `seen` clips had been seen, interpolated between lines."""
        xs, ys = [0.0, *(float(line["seen"]) for line in self.lines)], [0.0, *(float(x[key]) for x in self.lines)]
        i = min(max(1, bisect_left(xs, seen)), len(xs) - 1)
        share = min(1.0, (seen - xs[i - 1]) / (xs[i] - xs[i - 1])) if xs[i] > xs[i - 1] else 1.0
        return ys[i - 1] + share * (ys[i] - ys[i - 1])


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one config under one or several seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> TrainConfig:
        return self.runs[0].config

    def mean(self, value: Callable[[Run], float]) -> float:
        """Of a property, over the seeds."""
        return statistics.fmean(value(run) for run in self.runs)

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(probe.task for run in self.runs for probe in run.probes))

    def probe(self, task: str) -> Probe | None:
        """The last probe of a task: of one run as it is, of several their mean and range over seeds."""
        found = [
            max((p for p in run.probes if p.task == task), key=lambda p: p.seen)
            for run in self.runs
            if any(p.task == task for p in run.probes)
        ]
        if len(found) < 2:
            return found[0] if found else None
        values = [p.value for p in found]
        shared = {name for name in found[0].baselines if all(name in p.baselines for p in found)}
        baselines = {n: statistics.fmean(p.baselines[n] for p in found) for n in found[0].baselines if n in shared}
        return dataclasses.replace(
            found[0], value=statistics.fmean(values), interval=(min(values), max(values)), baselines=baselines
        )


# --- reading ---------------------------------------------------------------------------------------------------------


def read_run(path: str | Path) -> Run:
    """Reads a run folder.

    Raises:
        UserError: it is no run folder, or a file in it is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no run folder {folder}; give the folder that avpretrain train wrote")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder (no config.yaml); give the folder that avpretrain train wrote")
    config, lines = _config(folder), _lines(folder / "metrics.jsonl")
    info = read_json(folder / "run.json", "run description") if (folder / "run.json").is_file() else {}
    if not isinstance(info, dict):
        raise UserError(f"run description {folder / 'run.json'} must hold an object")
    return Run(
        path=folder,
        name=config.name,
        config=config,
        info=info,
        lines=lines,
        probes=tuple(p for f in sorted((folder / "eval").glob("*.json")) for p in _probe(f, int(lines[-1]["seen"]))),
        pictures=tuple(sorted((folder / "reconstructions").glob("*.png"))),
    )


def _config(folder: Path) -> TrainConfig:
    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text())
        if not isinstance(values, dict):
            raise UserError("it holds no 'key: value' lines")
        return from_dict(TrainConfig, values)
    except (yaml.YAMLError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path} is not a config that this version can read: {error}") from None


def _lines(path: Path) -> tuple[Line, ...]:
    """Lines of metrics; a last one cut off by a crash is left out."""
    if not path.is_file():
        raise UserError(f"no metrics at {path}; has the run logged its first step yet?")
    lines: list[Line] = []
    texts = path.read_text(errors="replace").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            if number == len(texts):
                break
            raise UserError(f"{path} line {number} is not valid JSON") from None
        missing = [k for k in NEEDED if not isinstance(line.get(k), int | float)] if isinstance(line, dict) else NEEDED
        if missing:
            raise UserError(f"{path} line {number} lacks a number for '{missing[0]}'")
        lines.append(line)
    if not lines:
        raise UserError(f"{path} is empty; has the run logged its first step yet?")
    return tuple(lines)


def _probe(path: Path, seen: int) -> Iterable[Probe]:
    """The result in an evaluation's file; files of another shape are none."""
    result = read_json(path, "evaluation result")
    metric = result.get("metric") if isinstance(result, dict) else None
    if not isinstance(metric, str) or not isinstance(result.get(metric), int | float):
        return
    ci = result.get("ci")
    baselines = {
        name.replace("_", " "): float(found[metric])
        for name, found in (result.get("baselines") or {}).items()
        if isinstance(found, dict) and isinstance(found.get(metric), int | float)
    }
    weights = result.get("checkpoint") or {}
    yield Probe(
        task=_task(result) or path.stem,
        metric=metric,
        value=float(result[metric]),
        interval=(float(ci[0]), float(ci[1])) if isinstance(ci, list) and len(ci) == 2 else None,
        baselines={name: value for name, value in baselines.items() if math.isfinite(value)},
        seen=int(weights.get("seen", seen)) if isinstance(weights, dict) else seen,
    )


def _task(result: dict[str, Any]) -> str:
    """'class from audio, linear probe'."""
    label, modality, task = (str(result.get(key) or "").replace("_", " ") for key in ("label", "modality", "task"))
    what = " from ".join(part for part in (label, modality) if part)
    return ", ".join(part for part in (what, task) if part)


# --- several runs ----------------------------------------------------------------------------------------------------


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Reads run folders; runs of the same name are told apart by their folders.

    Raises:
        UserError: see `read_run`.
    """
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    parts = [run.path.resolve().parts for run in runs]
    common = _common([p[:-1] for p in parts])
    return [dataclasses.replace(run, name="/".join(p[common:])) for run, p in zip(runs, parts, strict=True)]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same config, seeds and mechanics aside, in order of appearance."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        values = to_dict(run.config)
        for key in ("name", "output_dir", "seed", "run", "data"):
            values.pop(key)
        # The log-mel statistics of the same data are the same; a group is one setting on one set of data.
        key = json.dumps([values, run.info.get("data")], sort_keys=True)
        found.setdefault(key, []).append(run)
    return [Group(_shared_name([run.name for run in group]), tuple(group)) for group in found.values()]


def _shared_name(names: Sequence[str]) -> str:
    """What the names of a group begin with: 'mavil' of 'mavil-0' and 'mavil-1'."""
    if len(names) == 1:
        return names[0]
    shared = names[0][: _common(names)].rstrip("-_/. ")
    return shared.removesuffix("seed").rstrip("-_/. ") or names[0]


def _common(sequences: Sequence[Sequence[str]]) -> int:
    """How many leading items all sequences share."""
    return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False)))


def baseline_of(groups: Sequence[Group]) -> Group:
    """What savings are measured against: the group whose name says MAViL and not DiffMAViL, else the first."""
    return next((g for g in groups if "mavil" in g.name.lower().replace("diffmavil", "")), groups[0])
