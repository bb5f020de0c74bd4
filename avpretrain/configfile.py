"""Configs from YAML files and nested dictionaries, strictly, and back.

Nothing here imports torch, so that a wrong config fails at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from avpretrain.config import TrainConfig
from avpretrain.errors import UsageError

T = TypeVar("T")


def from_dict(cls: type[T], values: Any, path: str = "") -> T:
    """Builds `cls` from nested mappings, strictly.

    Raises:
        UsageError: an unknown key (with the nearest right name), a value of the wrong type, or an impossible value.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise UsageError(f"config key '{path.rstrip('.')}' takes a mapping, got {values!r}")
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean '{path}{close[0]}'?" if close else f"known: {', '.join(sorted(hints))}"
            raise UsageError(f"unknown config key '{path}{key}'; {hint}")
    fields = {key: _convert(hints[key], value, f"{path}{key}") for key, value in values.items()}
    try:
        return cls(**fields)
    except ValueError as error:
        raise UsageError(f"config: {path}{error}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type, or a UsageError that names key, value and type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, path + ".")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        listed = [arg for arg in args if typing.get_origin(arg) is tuple]
        if listed and isinstance(value, list | tuple):
            return _convert(listed[0], value, path)
        return _convert(next(arg for arg in args if arg is not type(None)), value, path)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        close = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
        hint_text = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(map(str, args))}"
        raise UsageError(f"config key '{path}' can't be {value!r}; {hint_text}")
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise UsageError(f"config key '{path}' takes {len(args)} values, got {len(value)}: {value!r}")
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(
            _convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = "a list" if origin is tuple else getattr(hint, "__name__", str(hint))
    extra = "; YAML reads 1e-4 as text, write 1.0e-4" if hint is float and isinstance(value, str) else ""
    raise UsageError(f"config key '{path}' takes {name}, got {value!r}{extra}")


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `from_dict`, in plain JSON types."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def presets_dir() -> Path:
    """Folder of the presets: inside the package when installed, `configs/` of the repository in a source tree."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def find_config(name: str) -> Path:
    """The YAML file that `name` means: a path, or the name of a preset.

    Raises:
        UsageError: there is neither; the message gives the nearest preset.
    """
    if Path(name).is_file():
        return Path(name)
    presets = {p.stem: p for p in sorted(presets_dir().glob("*.yaml"))}
    stem = Path(name).name.removesuffix(".yaml")
    if stem in presets and Path(name).parent.name in ("", "configs"):
        return presets[stem]
    close = difflib.get_close_matches(stem, presets, n=1)
    raise UsageError(
        f"no config '{name}'; " + (f"did you mean '{close[0]}'?" if close else f"presets: {', '.join(presets)}")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file as nested dicts, laid over the file its `extends` key names (relative to it)."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold 'key: value' lines, got {type(values).__name__}")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not (path.parent / str(parent)).is_file():
        raise UsageError(f"{path} extends '{parent}', which is not in {path.parent}")
    return _overlay(read_yaml(path.parent / str(parent)), values)


def _overlay(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged


def load_config(name: str) -> TrainConfig:
    """Reads a preset or a YAML file; its `name` defaults to the file's."""
    path = find_config(name)
    return from_dict(TrainConfig, {"name": path.stem, **read_yaml(path)})
