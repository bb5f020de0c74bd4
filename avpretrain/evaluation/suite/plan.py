"""A list of evaluations: tasks on data sets, read from YAML and checked before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from avpretrain.config.reader import find_config, from_dict, read_yaml
from avpretrain.core.errors import UsageError
from avpretrain.data.choices import SourceName
from avpretrain.evaluation.finetune.recipes import RECIPES
from avpretrain.evaluation.settings import Modality, Pooling

Method = Literal["linear", "knn", "finetune", "retrieve"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """A data set of the list, and how it is made of a folder of files."""

    folder: str = ""
    """Below --packs; empty = the data set's name."""
    source: SourceName = "folder"
    short_side: int = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A task of the list: a row of the table for each modality and method."""

    name: str = ""
    """In the table."""
    data: str = ""
    """Name of the data set."""
    label: str = ""
    """What to learn; retrieval needs none."""
    folds: str = ""
    """Label that names official folds, or how many to make; empty = the data set's splits."""
    train_split: str | tuple[str, ...] = ""
    """Splits that are for training; empty = those of such names, or what the recipe says."""
    test_split: str | tuple[str, ...] = ""
    """Splits that are for test; empty = those of such names."""
    modalities: tuple[Modality, ...] = ("audio",)
    methods: tuple[Method, ...] = ("linear",)
    split: str = "test"
    """Clips that retrieval searches."""
    recipe: str = "small"
    """Of fine-tuning."""
    epochs: int = 0
    """Of fine-tuning; 0 = the recipe's."""
    max_seconds: float = 0.0
    """Of fine-tuning: window of longer clips, to which shorter ones are filled up; 0 = the recipe's."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("every task needs a name")
        if not self.label and self.methods != ("retrieve",):
            raise ValueError(f"the task '{self.name}' needs a label")
        if self.recipe not in RECIPES:
            raise ValueError(f"the task '{self.name}' names no recipe: {self.recipe}; recipes: {', '.join(RECIPES)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A list of tasks and the data sets they are on."""

    data: dict[str, DataSpec] = field(default_factory=dict)
    tasks: tuple[Entry, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteConfig:
    """What all evaluations of a list share."""

    shards: Path
    """Folder that holds, or will hold, a sharded data set under each name."""
    out: Path
    """Folder of the results."""
    packs: Path | None = None
    """Folder of the files, from which data sets that are not there yet are sharded."""
    only: tuple[str, ...] = ()
    """Names of data sets; none = all."""
    pool: Pooling = field(default_factory=Pooling)
    """Of probes."""
    batch_size: int = 32
    num_workers: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One evaluation."""

    entry: Entry
    modality: Modality
    method: Method
    path: Path
    """Of its result."""


def load_suite(name: str) -> Suite:
    """Reads a list: a YAML file, or the name of a preset.

    Raises:
        UsageError: a key or value is wrong, or a task is on a data set that the list does not describe.
    """
    values = read_yaml(find_config(name, "suites"))
    data = values.pop("data", {})
    if not isinstance(data, dict):
        raise UsageError(f"'data' of {name} must hold a mapping from names of data sets to folders")
    specs = {
        str(key): from_dict(DataSpec, {"folder": str(key), **value}, f"data.{key}.") for key, value in data.items()
    }
    suite = replace(from_dict(Suite, values), data=specs)
    for entry in suite.tasks:
        if entry.data not in specs:
            raise UsageError(f"the task '{entry.name}' is on '{entry.data}'; data sets of {name}: {', '.join(specs)}")
    if not suite.tasks:
        raise UsageError(f"{name} lists no tasks")
    return suite


def jobs_of(suite: Suite, cfg: SuiteConfig) -> list[Job]:
    """The evaluations of a list, those on one data set together.

    Raises:
        UsageError: `only` names a data set that the list has not, or two evaluations would share a file.
    """
    for name in cfg.only:
        if name not in suite.data:
            raise UsageError(f"no data set '{name}' in the list; there are: {', '.join(suite.data)}")
    jobs = [
        Job(entry, modality, method, cfg.out / f"{_stem(entry, modality, method, cfg.pool)}.json")
        for entry in sorted(suite.tasks, key=lambda entry: list(suite.data).index(entry.data))
        if not cfg.only or entry.data in cfg.only
        for method in entry.methods
        for modality in (entry.modalities if method != "retrieve" else ("both",))
    ]
    paths = [job.path for job in jobs]
    for job in jobs:
        if paths.count(job.path) > 1:
            raise UsageError(f"'{job.entry.name}' is listed twice; names, modalities and methods must tell tasks apart")
    return jobs


def _stem(entry: Entry, modality: Modality, method: Method, pool: Pooling) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", entry.name.lower()).strip("_")
    if method == "retrieve":
        return f"{name}_{method}"
    own = "" if method == "finetune" or pool == Pooling() else f"_{pool.kind}{pool.layers}"
    return f"{name}_{modality}_{method}{own}"
