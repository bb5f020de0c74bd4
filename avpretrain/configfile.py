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
from avpretrain.files import read_text

T = TypeVar("T")

MAX_YAML_BYTES = 1 << 20
MAX_YAML_NODES = 100_000
"""Most keys and values of a YAML file, after its aliases are followed."""
MAX_EXTENDS = 16
"""Most files that extend one another."""


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
    """A config file as nested dicts, laid over the file its `extends` key names (relative to it).

    Raises:
        UsageError: it can't be read, or its files extend one another without end.
    """
    return _read_yaml(path, MAX_EXTENDS)


def _read_yaml(path: Path, depth: int) -> dict[str, Any]:
    if depth == 0:
        raise UsageError(f"{path} extends others through more than {MAX_EXTENDS} files")
    try:
        values = load_yaml(read_text(path, MAX_YAML_BYTES)) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold 'key: value' lines, got {type(values).__name__}")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not (path.parent / str(parent)).is_file():
        raise UsageError(f"{path} extends '{parent}', which is not in {path.parent}")
    return _overlay(_read_yaml(path.parent / str(parent), depth - 1), values)


def load_yaml(text: str) -> Any:
    """`yaml.safe_load` that holds against depth and against aliases that multiply.

    Raises:
        yaml.YAMLError: it is not YAML.
        ValueError: it asks for too much.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            if _yaml_size(root, {}, frozenset()) > MAX_YAML_NODES:
                raise ValueError(f"it holds more than {MAX_YAML_NODES} values")
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _yaml_size(node: yaml.Node, known: dict[int, int], above: frozenset[int]) -> int:
    """Nodes below and with `node`, counted as often as aliases repeat them."""
    if id(node) in above:
        raise ValueError("an alias stands inside what it names")
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        inside = above | {id(node)} if parts else above
        known[id(node)] = 1 + sum(_yaml_size(part, known, inside) for part in parts)
    return known[id(node)]


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
