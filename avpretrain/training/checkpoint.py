"""Checkpoints: written whole or not at all, in the background, verified on load; nothing in them is a pickle.

A checkpoint is a folder named by the clips seen: `model.safetensors` and `config.json` (loadable on their own),
`optimizer.safetensors`, and `state.json` with the progress, the SHA-256 of the other files, and a checksum over itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from avpretrain.config.reader import from_dict, to_dict
from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path, open_file, write_json
from avpretrain.training.folders import CONFIG, OPTIMIZER, STATE, WEIGHTS, list_checkpoints

Better = Literal["min", "max"]
"""Which value of a measure is the better one."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: all it needs besides weights and optimiser state, since draws are functions of `seen`."""

    seen: int = 0
    """Clips seen."""
    step: int = 0
    """Optimiser steps taken."""
    seconds: float = 0.0
    """Time spent training, over all interruptions."""
    failed_clips: int = 0
    """Clips that could not be decoded and were replaced."""
    flops: float = 0.0
    """FLOPs spent, by the analytic count."""


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory."""

    progress: Progress
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    config: Any
    """A dataclass from which the model can be built."""
    measures: dict[str, float] = field(default_factory=dict)
    """How good it is, by the names of the method's measures."""
    method: str = "diffmavil"


def take_snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    config: Any,
    method: str,
    measures: dict[str, float] | None = None,
) -> Snapshot:
    """Copies weights and optimiser state to the CPU, whole even where ranks hold shards of them.

    Every rank must call it; where there are several, all but rank 0 get empty ones.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    state: Any = get_optimizer_state_dict(model, optimizer, options=options).get("state", {})  # {} off rank 0
    flat = {f"{name}.{key}": value for name, slots in state.items() for key, value in slots.items()}
    return Snapshot(progress, _owned(weights), _owned(flat), config, measures or {}, method)


def _owned(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Copies that training can't write into while they are being saved."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def write_snapshot(root: Path, snapshot: Snapshot) -> Path:
    """Writes `root/NNNNNNNNNNNN`.

    Raises:
        OSError: the disk is full or not writable; what was there before is unharmed.
    """
    target = root / f"{snapshot.progress.seen:012d}"
    with atomic_path(target) as folder:
        folder.mkdir()
        save_file(snapshot.model, folder / WEIGHTS, metadata={"format": "pt"})
        save_file(snapshot.optimizer, folder / OPTIMIZER)
        config = {"method": snapshot.method, "config": to_dict(snapshot.config)}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        hashes = {name: file_sha256(folder / name) for name in (WEIGHTS, OPTIMIZER, CONFIG)}
        state = {"progress": dataclasses.asdict(snapshot.progress), "measures": snapshot.measures, "sha256": hashes}
        write_json(folder / STATE, {**state, "checksum": _checksum(state)})
        for name in (*hashes, STATE):
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
    return target


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CheckpointWriter:
    """Saves snapshots on a thread of its own and prunes old ones.

    Args:
        keep: newest checkpoints that stay; 0 keeps all.
        best: the measure by which one more stays; 'none' = no more.
        better: which of its values is the better one.
    """

    def __init__(self, root: Path, keep: int, best: str = "none", better: Better = "min") -> None:
        self.root, self.keep, self._best = root, keep, (best, better)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Starts to write; waits first for the one before.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_snapshot(self.root, snapshot)
            best = self.best()
            for old in list_checkpoints(self.root)[: -self.keep or None] if self.keep else []:
                if old != best:
                    gone = old.rename(old.with_name(f".{old.name}.old.tmp"))  # a kill leaves no half of it in sight
                    shutil.rmtree(gone)
        except BaseException as error:
            self._error = error

    def best(self) -> Path | None:
        """The checkpoint with the best value of the measure, if any has one."""
        return best_checkpoint(self.root, *self._best)

    def wait(self) -> None:
        """Returns once everything is on disk.

        Raises:
            UserError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            last = list_checkpoints(self.root)
            raise UserError(
                f"could not write a checkpoint to {self.root}: {error}; "
                + (f"the last good one is {last[-1].name}; " if last else "")
                + "free some space and start the same command again to resume from there"
            ) from error


def best_checkpoint(root: Path, measure: str, better: Better) -> Path | None:
    """The checkpoint with the best value of a measure, the later of equals; none where none has it.

    One whose state is damaged is none.
    """
    ranked = []
    for checkpoint in list_checkpoints(root):
        try:
            value = read_state(checkpoint)["measures"].get(measure)
        except (OSError, UserError):
            continue
        if value is not None and not math.isnan(value):
            ranked.append((-value if better == "min" else value, checkpoint))
    return max(ranked)[1] if ranked else None


def _checksum(state: dict[str, Any]) -> str:
    """SHA-256 of a checkpoint's state without its own checksum."""
    content = {key: value for key, value in state.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's `state.json`, once its checksum and its folder's name bear it out.

    Earlier versions wrote no checksum; of theirs, the form is checked.

    Raises:
        UserError: it is missing or damaged, or the folder is not the one it was written for; the message says which.
        OSError: it can't be read now.
    """
    damaged = UserError(f"{STATE} is damaged")
    _require_file(checkpoint / STATE)
    try:
        state = json.loads((checkpoint / STATE).read_bytes())
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(state, dict):
        raise damaged
    unsealed = state.keys() in ({"progress", "sha256"}, {"progress", "measures", "sha256"})
    if not unsealed and state.get("checksum") != _checksum(state):
        raise damaged
    state.setdefault("measures", {})
    try:
        progress = Progress(**state["progress"])
        numbers = [*dataclasses.astuple(progress), *state["measures"].values()]
    except (TypeError, KeyError, AttributeError):
        raise damaged from None
    counts = (progress.seen, progress.step, progress.failed_clips)
    if not all(type(n) in (int, float) for n in numbers) or not all(type(n) is int for n in counts):
        raise damaged
    if min(dataclasses.astuple(progress)) < 0 or progress.step > progress.seen:
        raise damaged
    if f"{progress.seen:012d}" != checkpoint.name:
        raise UserError(f"it is the checkpoint at {progress.seen} clips under another name")
    return state


def _require_file(path: Path) -> None:
    """Raises a UserError where there is no ordinary file, an OSError where none can be read now."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.name} is missing") from None
    raise UserError(f"{path.name} is not a file")


def fault_of_state(checkpoint: Path) -> str | None:
    """As `fault_of`, of `state.json` alone."""
    try:
        read_state(checkpoint)
    except UserError as error:
        return str(error)
    return None


def fault_of(checkpoint: Path, model: Any) -> str | None:
    """What is wrong with a checkpoint of a run, in a few words; none = every file has the SHA-256 it was written with.

    Args:
        model: the run's config of its model; a checkpoint of another model is none of its.

    Raises:
        OSError: it can't be read now.
    """
    try:
        hashes = read_state(checkpoint)["sha256"]
        if not isinstance(hashes, dict) or set(hashes) != {WEIGHTS, OPTIMIZER, CONFIG}:
            return f"{STATE} is damaged"
        for name, digest in hashes.items():
            _require_file(checkpoint / name)
            if file_sha256(checkpoint / name) != digest:
                return f"{name} is damaged"
        config = json.loads((checkpoint / CONFIG).read_bytes())["config"]
        return None if from_dict(type(model), config, "model.") == model else "it is of another model"
    except UserError as error:
        return str(error)
    except (ValueError, KeyError, TypeError):
        return f"{CONFIG} is damaged"


def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Loads weights and optimiser state in place; every rank must call it."""
    options = StateDictOptions(full_state_dict=True)
    renamed: Callable[[str], str] = getattr(getattr(model, "module", model), "current_key", str)
    weights: dict[str, Any] = {renamed(name): tensor for name, tensor in load_file(checkpoint / WEIGHTS).items()}
    set_model_state_dict(model, weights, options=options)
    slots: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(checkpoint / OPTIMIZER).items():
        parameter, _, key = name.rpartition(".")
        slots.setdefault(renamed(parameter), {})[key] = tensor
    groups = get_optimizer_state_dict(model, optimizer, options=options)["param_groups"]
    state: Any = {"state": slots, "param_groups": groups}
    rates = [group["lr"] for group in optimizer.param_groups]
    set_optimizer_state_dict(model, optimizer, state, options=options)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # torch puts a tensor on the CPU in its place, which a CUDA graph would read too late
    return Progress(**read_state(checkpoint)["progress"])
