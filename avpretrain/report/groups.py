"""Runs of one config under several seeds, taken together."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avpretrain.config.reader import learnt_config
from avpretrain.config.train import EngineConfig
from avpretrain.measures.runs import Probe, Run, common_prefix
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.run_cost import is_mavil


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one config under one or several seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> EngineConfig:
        return self.runs[0].config

    def mean(self, value: Callable[[Run], float]) -> float:
        """Of a property, over the seeds."""
        return statistics.fmean(value(run) for run in self.runs)

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(probe.task for run in self.runs for probe in run.probes))

    def probe(self, task: str) -> Probe | None:
        """The last probe of a task: of one run as it is, of several their mean and range over seeds."""
        probes = [probe for run in self.runs if (probe := run.probe(task)) is not None]
        if len(probes) < 2:
            return probes[0] if probes else None
        values = [p.value for p in probes]
        shared = {name for name in probes[0].baselines if all(name in p.baselines for p in probes)}
        baselines = {n: statistics.fmean(p.baselines[n] for p in probes) for n in probes[0].baselines if n in shared}
        return dataclasses.replace(
            probes[0], value=statistics.fmean(values), interval=(min(values), max(values)), baselines=baselines
        )


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of the same config, seeds and mechanics aside, in order of appearance."""
    runs_by_config: dict[str, list[Run]] = {}
    for run in runs:
        values = learnt_config(run.config)
        values.pop("seed")
        # The log-mel statistics of the same data are the same; a group is one setting on one set of data.
        key = json.dumps([values, run.info.get("data")], sort_keys=True)
        runs_by_config.setdefault(key, []).append(run)
    return [Group(_shared_name([run.name for run in group]), tuple(group)) for group in runs_by_config.values()]


def _shared_name(names: Sequence[str]) -> str:
    """What the names of a group begin with: 'mavil' of 'mavil-0' and 'mavil-1', or of 'mavil-s0' and 'mavil-s1'."""
    if len(names) == 1:
        return names[0]
    shared = names[0][: common_prefix(names)]
    return re.sub(r"([-_/. ](seed|s)?\d*)?[-_/. ]*$", "", shared) or names[0]


def baseline_of(groups: Sequence[Group]) -> Group:
    """What savings are measured against: the first group whose config is MAViL's, else the first group."""
    return next((g for g in groups if isinstance(g.config, TrainConfig) and is_mavil(g.config)), groups[0])
