"""The folder of a run: its resolved config, what it was made with, and where it can go on from."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from avpretrain.config import TrainConfig
from avpretrain.configfile import from_dict, to_dict
from avpretrain.data.clips import ClipSet
from avpretrain.data.log_mel_stats import log_mel_stats
from avpretrain.data.sampler import Order
from avpretrain.errors import UsageError
from avpretrain.files import atomic_path, read_json, write_json
from avpretrain.provenance import environment
from avpretrain.schedules import Step
from avpretrain.training.checkpoint import Snapshot, is_intact, list_checkpoints, write_snapshot

CONFIG_NAME = "config.yaml"
RUN_NAME = "run.json"


def resolve(cfg: TrainConfig, clips: ClipSet) -> TrainConfig:
    """The config with what depends on the data filled in: log-mel statistics, unless given.

    A run that has begun keeps those that it began with, however they were measured then.
    """
    inputs = cfg.model.input
    if inputs.audio_mean is not None and inputs.audio_std is not None:
        return cfg
    mean, std = _begun_with(cfg) or log_mel_stats(clips, inputs.mels, inputs.sample_rate)
    inputs = dataclasses.replace(
        inputs,
        audio_mean=mean if inputs.audio_mean is None else inputs.audio_mean,
        audio_std=std if inputs.audio_std is None else inputs.audio_std,
    )
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, input=inputs))


def _begun_with(cfg: TrainConfig) -> tuple[float, float] | None:
    """Log-mel statistics of the run that the folder holds, where it has the same audio input."""
    path = cfg.run_dir / CONFIG_NAME
    if not path.is_file():
        return None
    there, here = from_dict(TrainConfig, yaml.safe_load(path.read_text())).model.input, cfg.model.input
    same = (there.mels, there.sample_rate) == (here.mels, here.sample_rate)
    if not same or there.audio_mean is None or there.audio_std is None:
        return None
    return there.audio_mean, there.audio_std


def what_is_learnt(cfg: TrainConfig) -> dict[str, Any]:
    """The config without the mechanics: two runs that agree here learn the same."""
    values = to_dict(cfg)
    for key in ("output_dir", "name", "run"):
        values.pop(key)
    for key in ("num_workers", "prefetch", "shards", "max_bad_share", "cache_dir"):
        values["data"].pop(key, None)
    return values


def differences(a: dict[str, Any], b: dict[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two nested dictionaries differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(a.keys() | b.keys()):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found |= differences(left, right, f"{path}{key}.")
        elif left != right:
            found[f"{path}{key}"] = (left, right)
    return found


def open_run(cfg: TrainConfig, clips: ClipSet, facts: dict[str, Any]) -> None:
    """Makes the run's folder, or checks that it holds the same run.

    Args:
        cfg: resolved.
        facts: what else goes into run.json (parameters, ranks).

    Raises:
        UsageError: the folder holds a run with another config or other data.
    """
    folder = cfg.run_dir
    if (folder / CONFIG_NAME).is_file():
        _check_same(cfg, clips)
    else:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no run; choose another with --output-dir")
        with atomic_path(folder / CONFIG_NAME) as temporary:
            temporary.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False))
    write_json(
        folder / RUN_NAME,
        {
            "name": cfg.name,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "data": {"fingerprint": clips.fingerprint, "clips": len(clips), "split": cfg.data.split},
            **facts,
            **environment(),
        },
    )


def _check_same(cfg: TrainConfig, clips: ClipSet) -> None:
    folder = cfg.run_dir
    there = from_dict(TrainConfig, yaml.safe_load((folder / CONFIG_NAME).read_text()))
    changed = differences(what_is_learnt(there), what_is_learnt(cfg))
    if changed:
        key, (old, new) = next(iter(changed.items()))
        raise UsageError(
            f"{folder} holds a run with another config: {key} is {old!r} there and {new!r} here"
            + (f" ({len(changed) - 1} more keys differ)" if len(changed) > 1 else "")
            + "; choose another folder with --output-dir, or delete that one"
        )
    if (folder / RUN_NAME).is_file():
        old_data = read_json(folder / RUN_NAME, "run description")["data"]["fingerprint"]
        if old_data != clips.fingerprint:
            raise UsageError(f"{folder} was trained on other data (fingerprint {old_data[:12]}); choose --output-dir")


def save_failure(cfg: TrainConfig, clips: ClipSet, step: Step, snapshot: Snapshot) -> None:
    """Keeps what tells why a step was not finite: weights and state from before it, and the keys of its clips."""
    folder = cfg.run_dir / "failure"
    write_snapshot(folder, snapshot)
    order = Order(clips.shard_sizes, cfg.data.shuffle_window, cfg.seed)
    places = [order.place(position) for position in range(step.seen, step.seen + step.batch_size)]
    keys = [clips.clip(order.row(place)).key for place in places]
    write_json(folder / "batch.json", {"step": dataclasses.asdict(step), "keys": keys})


def resume_point(cfg: TrainConfig) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run, and the names of damaged newer ones; clears away half-written ones."""
    root = cfg.run_dir / "checkpoints"
    for leftover in root.glob(".*.tmp") if root.is_dir() else []:
        shutil.rmtree(leftover, ignore_errors=True)
    damaged: list[str] = []
    for checkpoint in reversed(list_checkpoints(root)):
        if is_intact(checkpoint):
            return checkpoint, damaged
        damaged.append(checkpoint.name)
    return None, damaged
