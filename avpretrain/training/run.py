"""The folder of a run: its resolved config, what it was made with, and where it can resume."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any, TypeVar

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from avpretrain.config.reader import from_dict, learnt_config, load_yaml, to_dict
from avpretrain.config.schedules import Step
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import atomic_path, clear_leftovers, read_json, read_text, write_json
from avpretrain.core.locks import LOCK_NAME
from avpretrain.core.provenance import environment
from avpretrain.core.terminal import say
from avpretrain.training.checkpoint import Snapshot, fault_of, fault_of_state, write_snapshot
from avpretrain.training.folders import checkpoint_folders
from avpretrain.training.method import Data
from avpretrain.training.metrics import METRICS_NAME

Config = TypeVar("Config", bound=EngineConfig)

CONFIG_NAME = "config.yaml"
RUN_NAME = "run.json"
SHARING_SECONDS = 5.0
"""How long a file of rank 0 may take to appear on another machine."""
FOLDERS = ("checkpoints", "reconstructions", "failure", "model")
"""Folders that training writes in a run's."""


def differences(a: dict[str, Any], b: dict[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two nested dictionaries differ, with both values."""
    pairs: dict[str, tuple[Any, Any]] = {}
    for key in sorted(a.keys() | b.keys()):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            pairs |= differences(left, right, f"{path}{key}.")
        elif left != right:
            pairs[f"{path}{key}"] = (left, right)
    return pairs


def open_run(cfg: EngineConfig, data: Data, facts: dict[str, Any]) -> None:
    """Makes the run's folder, or checks that it holds the same run; the caller has locked it.

    Args:
        cfg: resolved.
        facts: what else goes into run.json (parameters, ranks).

    Raises:
        UsageError: the folder holds a run with another config or other data, or something else.
    """
    folder = cfg.run_dir
    _check_kinds(folder)
    for part in (folder, *(folder / name for name in FOLDERS)):
        clear_leftovers(part)
    if (folder / CONFIG_NAME).is_file():
        _check_same(cfg, data)
    else:
        if folder.exists() and {path.name for path in folder.iterdir()} - {LOCK_NAME}:
            raise UsageError(
                f"{folder} is not empty and holds no run (no {CONFIG_NAME}); choose another with --output-dir"
            )
        with atomic_path(folder / CONFIG_NAME) as temporary:
            temporary.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False))
    write_json(
        folder / RUN_NAME,
        {
            "name": cfg.name,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "data": data.describe(),
            **facts,
            **environment(),
        },
    )


def ranks_without(path: Path, accelerator: Accelerator) -> list[str]:
    """Ranks that do not see a file as rank 0 has it, as 'rank 8 on HOST'; every rank must call it.

    A shared file system may take some seconds to show a file to other machines, and is given them.
    """
    if accelerator.num_processes == 1:
        return []
    (wanted,) = broadcast_object_list([_digest(path)])
    patience = time.monotonic() + SHARING_SECONDS
    while (digest := _digest(path)) != wanted and time.monotonic() < patience:
        time.sleep(0.2)
    lacking = [] if digest == wanted else [f"rank {accelerator.process_index} on {socket.gethostname()}"]
    names: list[str] = gather_object(lacking)
    return names


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _check_kinds(folder: Path) -> None:
    """Refuses a run folder in which something else stands where a run keeps a file or a folder.

    Raises:
        UsageError: one does; the message names it.
    """
    for name in (CONFIG_NAME, RUN_NAME, METRICS_NAME):
        if (folder / name).exists() and not (folder / name).is_file():
            raise UsageError(f"{folder / name} is no file, and a run keeps one there; move it away")
    for name in FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise UsageError(f"{folder / name} is no folder, and a run keeps one there; move it away")


def run_config(folder: Path, schema: type[Config]) -> Config:
    """The config that a run's folder holds, of the type that its method has.

    Raises:
        UsageError: it is damaged.
    """
    path = folder / CONFIG_NAME
    try:
        return from_dict(schema, load_yaml(read_text(path)))
    except (yaml.YAMLError, ValueError, UsageError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{path} is damaged, so what the run was is not known ({reason}); put it back as it was, or choose another "
            "folder with --output-dir"
        ) from None


def _check_same(cfg: EngineConfig, data: Data) -> None:
    folder = cfg.run_dir
    there, trained = run_config(folder, type(cfg)), _fingerprint_there(folder)
    if trained not in (None, data.fingerprint):
        raise UsageError(
            f"{folder} was trained on other data: fingerprint {trained[:12]} there, {data.fingerprint[:12]} "
            f"({len(data)} clips) here; give the data as they were (--data.shards), or choose another "
            "folder with --output-dir"
        )
    changed = differences(learnt_config(there), learnt_config(cfg))
    if changed:
        key, (old, new) = next(iter(changed.items()))
        raise UsageError(
            f"{folder} holds a run with another config: {key} is {old!r} there and {new!r} here"
            + (f" ({len(changed) - 1} more keys differ)" if len(changed) > 1 else "")
            + "; choose another folder with --output-dir, or delete that one"
        )


def _fingerprint_there(folder: Path) -> str | None:
    """Fingerprint of the data that a run was trained on; none where its description is missing or damaged."""
    path = folder / RUN_NAME
    if not path.is_file():
        return None
    try:
        fingerprint = str(read_json(path, "run description")["data"]["fingerprint"])
    except (UserError, KeyError, TypeError):
        say(f"avpretrain: {path} is damaged and is written anew; whether the data are the same can't be checked")
        return None
    return fingerprint


def save_failure(folder: Path, data: Data, step: Step, snapshot: Snapshot) -> None:
    """Keeps what tells why a step was not finite: weights and state from before it, and the keys of its samples."""
    write_snapshot(folder, snapshot)
    keys = [data.key(position) for position in range(step.seen, step.seen + step.batch_size)]
    write_json(folder / "batch.json", {"step": dataclasses.asdict(step), "keys": keys})


def resume_point(cfg: EngineConfig, model: Any) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run, and a line for each damaged one, which is set aside under another name.

    Of the checkpoints before it, only `state.json` is looked at. Half-written ones are cleared away. One rank calls it.

    Args:
        model: config of the run's model.

    Raises:
        UserError: a checkpoint can't be read now, which is no sign that it is damaged.
    """
    root = cfg.run_dir / "checkpoints"
    clear_leftovers(root)
    intact, messages = None, []
    for checkpoint in reversed(checkpoint_folders(root)):
        try:
            fault = fault_of(checkpoint, model) if intact is None else fault_of_state(checkpoint)
        except OSError as error:
            raise UserError(f"can't read {checkpoint}: {error.strerror}; fix that and start again") from None
        if fault is None:
            intact = intact or checkpoint
            continue
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
        if aside.exists():
            shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        messages.append(
            f"checkpoint {checkpoint.name} is damaged ({fault}) and is passed over; it is kept as {aside.name}"
        )
    if messages and intact is None:
        messages.append("no checkpoint is intact, so the run begins anew")
    return intact, messages
