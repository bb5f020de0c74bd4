"""Weights from a folder that may be a stranger's: config and header are compared before anything is built."""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from avpretrain.config.model import MAX_CONFIG_BYTES
from avpretrain.config.reader import from_dict
from avpretrain.core.errors import UserError
from avpretrain.core.files import mistaken_for, open_file, read_head, read_json
from avpretrain.core.terminal import brief

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config")

MAX_HEADER_BYTES = 16 << 20
"""Largest safetensors header; one of ours takes 100 bytes a tensor."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def read_model(cls: type[Model], schema: type[Any], config: Path, weights: Path) -> Model:
    """The model in a `config.json` and a `model.safetensors`, on the CPU.

    Args:
        schema: of the config that `cls` is built from.
        cls: the model's class. Where it has a `current_key`, that says what a weight is called now that an
            earlier version saved under another name; its `load_state_dict` takes both.

    Raises:
        UserError: a file is missing or damaged, names, shapes or types of the weights are not those that the config
            asks for, or one is not finite.
    """
    cfg = read_model_config(config, schema)
    if weights.is_file() and (mistaken := mistaken_for(read_head(weights))):
        raise UserError(f"{weights} {mistaken}")
    header = read_header(weights)
    if (layers := _layers(cfg)) > len(header):  # even on the meta device a layer takes milliseconds
        raise UserError(f"{weights} does not fit its config: {len(header)} tensors are too few for {layers} layers")
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in cls(cfg).state_dict().items()}
    renamed: Callable[[str], str] = getattr(cls, "current_key", str)
    compare(wanted, {renamed(name): tensor for name, tensor in header.items()}, weights)
    size = 4 * sum(math.prod(shape) for shape in wanted.values())
    if size > _machine_memory():  # a file with holes claims any size and takes no room on a disk
        raise UserError(f"{weights} needs {size / 1e9:.0f} GB of memory, more than this machine has")
    try:
        model = cls(cfg)
        state = load_file(weights)
        check_finite(state, weights)
        model.load_state_dict(state)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights} is damaged: {str(error)[:200]}") from None
    except (MemoryError, RuntimeError) as error:
        raise_if_no_memory(error, weights)
        raise
    return model


def _layers(cfg: Any) -> int:
    towers = sum(tower.depth + tower.decoder.depth for tower in (cfg.audio, cfg.video))
    return towers + cfg.fusion.depth


def _machine_memory() -> float:
    """Bytes of memory that there are, or that the container may use; infinite where the system does not say."""
    limits = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no such system
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # "max" = no limit, no cgroups
        limits.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def raise_if_no_memory(error: MemoryError | RuntimeError, path: Path) -> None:
    """Raises a UserError if that is what an error of torch or safetensors means."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        raise UserError(f"{path} takes more memory than there is") from None


def read_model_config(path: Path, schema: type[Config]) -> Config:
    """The `config` of a `config.json`.

    Raises:
        UserError: there is none, or it is impossible.
    """
    values = read_json(path, "model config", MAX_CONFIG_BYTES)
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        raise UserError(f"model config {path} holds no 'config'; it is not one of this package's models")
    try:
        return from_dict(schema, values["config"], "model.")
    except UserError as error:
        raise UserError(f"model config {path}: {error}") from None


Header = dict[str, tuple[str, tuple[int, ...]]]


def read_header(path: Path) -> Header:
    """Type and shape of each tensor of a safetensors file, without reading it.

    Raises:
        UserError: it is missing, damaged, no ordinary file, or its header is too large.
    """
    try:
        with open_file(path) as file:
            start = file.read(8)
        if len(start) < 8 or (size := struct.unpack("<Q", start)[0]) > MAX_HEADER_BYTES:
            claimed = f"its header claims {size} bytes" if len(start) == 8 else "it is cut short"
            raise UserError(f"{path} is damaged or not a readable checkpoint: {claimed}")
        with safe_open(path, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a readable checkpoint: {str(error)[:200]}") from None
    except MemoryError as error:  # it is mapped as a whole
        raise_if_no_memory(error, path)
        raise


def compare(wanted: dict[str, tuple[int, ...]], header: Header, path: Path) -> None:
    """Compares what a config asks for with what a file has.

    Raises:
        UserError: they differ; the message names the first tensor.
    """
    for name in [*wanted, *header]:
        problem = ""
        if name not in header:
            problem = f"it lacks {brief(name)}"
        elif name not in wanted:
            problem = f"the config has no place for {brief(name)}"
        elif header[name][1] != wanted[name]:
            problem = (
                f"{brief(name)} has shape {brief(list(header[name][1]))}, the config asks for {list(wanted[name])}"
            )
        elif header[name][0] not in FLOATS:
            problem = f"{brief(name)} is of type {header[name][0]}, not of floating point"
        if problem:
            raise UserError(f"{path} does not fit its config: {problem}")


def check_finite(state: dict[str, Tensor], path: Path) -> None:
    """Looks for weights that are not finite.

    Raises:
        UserError: there is one; the message names its tensor.
    """
    for name, tensor in state.items():
        # A sum is finite only if all its parts are; only where it is not, each value is looked at.
        if not torch.isfinite(tensor.sum(dtype=torch.float64)) and not torch.isfinite(tensor).all():
            raise UserError(f"{path} holds weights that are not finite ({brief(name)}); it can't be used")
