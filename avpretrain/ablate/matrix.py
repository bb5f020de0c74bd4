"""A matrix of variants and seeds, read from YAML and checked before anything starts.

A variant is a name and the dotted config keys in which it differs from the base; `extends` lays it over variants above
it, so that each can add one difference and the split of a saving can be read off the matrix.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from avpretrain.ablate.kinds import check_kind
from avpretrain.config.changes import flat, with_changes
from avpretrain.config.reader import find_config, from_dict, read_yaml, to_dict
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError
from avpretrain.core.files import atomic_path
from avpretrain.evaluation.settings import PoolingKind
from avpretrain.methods.load import load_config

OF_A_CELL = ("name", "output_dir", "seed")
"""Keys that each cell sets for itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSpec:
    """One probe of every cell."""

    name: str = ""
    """What the table calls it; needed where label, modality, classifier and pooling do not tell two probes apart."""
    label: str = ""
    """Name of the label."""
    modality: Literal["audio", "video", "both"] = "audio"
    classifier: Literal["linear", "knn"] = "linear"
    pooling: PoolingKind = "mean"
    """How the vectors of a clip's patches become one."""
    data: tuple[str, ...] = ()
    """Sharded data sets; none = those of the training."""
    folds: str = ""
    """Label that names official folds, or how many to make; empty = the data set's splits."""

    def __post_init__(self) -> None:
        if not self.label:
            raise ValueError("label must name a label of the data, such as 'class'")

    @property
    def task(self) -> str:
        """What tells its result from others; names its file."""
        if self.name:
            return re.sub(r"[^A-Za-z0-9]+", "_", self.name).strip("_").lower()
        pooling = "" if self.pooling == "mean" else f"_{self.pooling}"
        return f"{self.classifier}_probe_{self.label}_{self.modality}{pooling}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationConfig:
    """What is run for every variant; the rest of the file says which variants there are."""

    base: str = "small_mavil"
    """The config that all variants start from: a YAML file or the name of a preset."""
    seeds: tuple[int, ...] = (0, 1, 2)
    probes: tuple[ProbeSpec, ...] = ()
    retrieval: bool = True
    """Measure R@1 between audio and video; nothing to language models."""
    spectrum: bool = True
    """Measure the error of reconstructed spectrograms by frequency; nothing to language models."""
    split: str = "test"
    """Clips that retrieval and spectrograms are measured on; 'val': probes too, and no test clip is touched. Text that
    perplexity is measured on, else the held-out split of the config."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different and at least one, got {list(self.seeds)}")
        tasks = [probe.task for probe in self.probes]
        for task in tasks:
            if tasks.count(task) > 1:
                raise ValueError(f"probes {task} appears twice; give each a name of its own, such as 'ESC-10, linear'")


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the matrix."""

    name: str
    extends: tuple[str, ...]
    """Variants that it is laid over."""
    changes: dict[str, Any]
    """Dotted keys that it adds to them."""
    differences: dict[str, Any]
    """Dotted keys in which it differs from the base."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """A matrix, ready to run."""

    name: str
    settings: AblationConfig
    base: EngineConfig
    variants: tuple[Variant, ...]

    @property
    def baseline(self) -> Variant:
        """What savings are measured against: the first variant without differences, else the first."""
        return next((v for v in self.variants if not v.differences), self.variants[0])

    def config(self, variant: Variant) -> EngineConfig:
        """The config of a variant, not yet of a seed.

        Raises:
            UsageError: a key or a value is wrong; the message names the variant.
        """
        return changed(self.base, variant.differences, f"variant '{variant.name}'")


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant under one seed, and where its files lie below the matrix's folder."""

    variant: Variant
    seed: int
    config: EngineConfig
    """With the name, the folder and the seed of this cell."""
    out: Path

    @property
    def name(self) -> str:
        return cell_name(self.variant.name, self.seed)

    @property
    def run(self) -> Path:
        return self.out / "runs" / self.name

    @property
    def record(self) -> Path:
        return self.out / "cells" / f"{self.name}.json"

    @property
    def config_file(self) -> Path:
        return self.out / "configs" / f"{self.name}.yaml"

    @property
    def log(self) -> Path:
        return self.out / "logs" / f"{self.name}.log"

    def write_config(self) -> None:
        """Writes the cell's config, which `avpretrain train` and other verbs read."""
        with atomic_path(self.config_file) as temporary:
            temporary.write_text(yaml.safe_dump(to_dict(self.config), sort_keys=False))


def cell_name(variant: str, seed: int) -> str:
    """Name of a cell, its run and its files."""
    return f"{variant}-s{seed}"


def load_ablation(name: str, base: str | None = None) -> Ablation:
    """Reads a matrix: a YAML file, or the name of a preset.

    Args:
        base: config to start from in place of the matrix's.

    Raises:
        UsageError: something in it is wrong; the message names file, variant and key.
    """
    path = find_config(name, "ablations")
    values = read_yaml(path)
    if "variants" not in values:
        raise UsageError(f"{path.name} is no matrix: it has no 'variants'; see configs/ablations/ablation.yaml for one")
    overrides, variants = (_mapping(values.pop(key, {}), path, key) for key in ("overrides", "variants"))
    settings = from_dict(AblationConfig, values | ({} if base is None else {"base": base}))
    start = changed(load_config(settings.base), flat(overrides), f"{path.name}: overrides")
    check_kind(start, settings, path.name)
    ablation = Ablation(path.stem, settings, start, tuple(_variants(variants, path)))
    for variant in ablation.variants:
        ablation.config(variant)
    return ablation


def _mapping(value: Any, path: Path, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{path.name}: '{key}' takes a mapping, got {value!r}")
    return value


def _variants(entries: Mapping[str, Any], path: Path) -> list[Variant]:
    """Each entry with what it inherits; of several it extends, later ones win."""
    if not entries:
        raise UsageError(f"{path.name} has no variants; name at least one, such as 'mavil: {{}}'")
    variants: dict[str, Variant] = {}
    for name, entry in entries.items():
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", str(name)):
            raise UsageError(f"{path.name}: variant '{name}' must be a plain name of letters, digits, '_' and '-'")
        own = dict(_mapping(entry or {}, path, f"variants.{name}"))
        given = own.pop("extends", ())
        extends = (given,) if isinstance(given, str) else tuple(given)
        for parent in extends:
            if parent not in variants:
                raise UsageError(f"{path.name}: variant '{name}' extends '{parent}', which is not a variant above it")
        changes, inherited = flat(own), [variants[parent].differences for parent in extends]
        differences = {key: value for part in (*inherited, changes) for key, value in part.items()}
        variants[name] = Variant(name, extends, changes, differences)
    return list(variants.values())


def changed(cfg: EngineConfig, changes: Mapping[str, Any], where: str) -> EngineConfig:
    """A config with some dotted keys set to other values.

    Args:
        where: what errors begin with.

    Raises:
        UsageError: a key is unknown (with the nearest right one), or a value is wrong.
    """
    known = flat(to_dict(cfg))
    for key in changes:
        if key in OF_A_CELL:
            raise UsageError(f"{where}: '{key}' is set for each cell and can't be given")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "avpretrain train CONFIG --help lists the keys"
            raise UsageError(f"{where}: unknown config key '{key}'; {hint}")
    try:
        return with_changes(cfg, changes)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def cells_of(ablation: Ablation, out: Path, seeds: Sequence[int] = (), only: Sequence[str] = ()) -> list[Cell]:
    """The cells to run: all variants of the first seed, then of the next, so that a matrix cut short can be read.

    Args:
        seeds: in place of those of the matrix.
        only: names of variants; none = all.

    Raises:
        UsageError: there is no such variant.
    """
    names = [variant.name for variant in ablation.variants]
    for name in only:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"variants: {', '.join(names)}"
            raise UsageError(f"no variant '{name}' in {ablation.name}; {hint}")
    chosen = [variant for variant in ablation.variants if not only or variant.name in only]
    return [_cell(ablation, variant, seed, out) for seed in seeds or ablation.settings.seeds for variant in chosen]


def _cell(ablation: Ablation, variant: Variant, seed: int, out: Path) -> Cell:
    name = cell_name(variant.name, seed)
    cfg = dataclasses.replace(ablation.config(variant), name=name, seed=seed, output_dir=str(out / "runs" / name))
    return Cell(variant, seed, cfg, out)
