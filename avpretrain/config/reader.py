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

from avpretrain.config.train import MECHANICS
from avpretrain.core.errors import UsageError
from avpretrain.core.files import read_text
from avpretrain.core.terminal import LONGEST, brief

T = TypeVar("T")
Schema = Literal["training", "ablations", "suites"]
SCHEMAS: dict[Schema, tuple[str, str]] = {
    "training": ("a config of a run", "train"),
    "ablations": ("a matrix of runs", "ablate"),
    "suites": ("a list of evaluations", "evaluate"),
}
"""What a preset can be, and the verb that takes it."""
OTHER_SCHEMAS: dict[str, Schema] = {"ablations": "ablations", "suites": "suites"}
"""Folders of `configs/` that are no method's."""

MAX_YAML_BYTES = 1 << 20
MAX_YAML_NODES = 100_000
"""Most keys and values of a YAML file, after its aliases are followed."""
MAX_EXTENDS = 16
"""Most files that extend one another."""
MAX_ITEMS = 10_000
"""Most values of one key."""


def from_dict(cls: type[T], values: Any, path: str = "") -> T:
    """Builds `cls` from nested mappings, strictly.

    Raises:
        UsageError: an unknown key (with the nearest right name), a value of the wrong type, or an impossible value.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise UsageError(f"config key '{path.rstrip('.')}' takes a mapping, got {brief(values)}")
    for key in values:
        if key not in hints:
            close = _close(key, list(hints))
            hint = f"did you mean '{path}{close}'?" if close else f"known: {', '.join(sorted(hints))}"
            raise UsageError(f"unknown config key '{path}{str(key)[:LONGEST]}'; {hint}")
    fields = {key: _convert(hints[key], value, f"{path}{key}") for key, value in values.items()}
    try:
        return cls(**fields)
    except ValueError as error:
        raise UsageError(f"config: {path}{str(error)[: 2 * LONGEST]}") from None


def _close(word: object, known: list[str]) -> str | None:
    """The known word that was meant; comparing takes time and memory by the length, so long ones mean none."""
    matches = difflib.get_close_matches(word, known, n=1) if isinstance(word, str) and len(word) <= LONGEST else []
    return matches[0] if matches else None


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
        close = _close(value, [str(a) for a in args])
        hint_text = f"did you mean '{close}'?" if close else f"choose from {', '.join(map(str, args))}"
        raise UsageError(f"config key '{path}' can't be {brief(value)}; {hint_text}")
    if origin is tuple and isinstance(value, list | tuple):
        if len(value) > MAX_ITEMS:
            raise UsageError(f"config key '{path}' takes at most {MAX_ITEMS} values, got {len(value)}")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise UsageError(f"config key '{path}' takes {len(args)} values, got {len(value)}: {brief(value)}")
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
    raise UsageError(f"config key '{path}' takes {name}, got {brief(value)}{extra}")


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `from_dict`, in plain JSON types."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def learnt_config(config: Any) -> dict[str, Any]:
    """`to_dict` without the fields that are marked as mechanics: two runs that agree here, on the same data, learn the
    same.
    """
    return _without_mechanics(config, to_dict(config))


def _without_mechanics(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for field in dataclasses.fields(config):
        if not field.metadata.get(MECHANICS):
            value = getattr(config, field.name)
            nested = dataclasses.is_dataclass(value)
            kept[field.name] = _without_mechanics(value, values[field.name]) if nested else values[field.name]
    return kept


def presets_dir() -> Path:
    """Folder of the presets: inside the package when installed, `configs/` of the repository in a source tree."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def presets(schema: Schema = "training") -> dict[str, Path]:
    """Presets of a schema by name: training's lie in a folder for each method, the others in one of their own."""
    folders = sorted(path for path in presets_dir().iterdir() if path.is_dir())
    chosen = [path for path in folders if OTHER_SCHEMAS.get(path.name, "training") == schema]
    return {path.stem: path for folder in chosen for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str, schema: Schema = "training") -> Path:
    """The YAML file that `name` means: a path, or the name of a preset of the schema.

    Raises:
        UsageError: there is neither; the message gives the nearest preset.
    """
    if Path(name).is_file():
        return Path(name)
    known = presets(schema)
    stem = Path(name).name.removesuffix(".yaml")
    if stem in known and Path(name).parent.name in ("", "configs", known[stem].parent.name):
        return known[stem]
    for other, (_, verb) in SCHEMAS.items():
        if other != schema and stem in presets(other):
            raise UsageError(
                f"'{stem}' is {SCHEMAS[other][0]}, for avpretrain {verb}; presets here: {', '.join(known)}"
            )
    close = difflib.get_close_matches(stem, known, n=1)
    raise UsageError(
        f"no config '{name}'; " + (f"did you mean '{close[0]}'?" if close else f"presets: {', '.join(known)}")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file as nested dicts, laid over the one its `extends` key names: a file next to it, or a preset.

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
    return _overlay(_read_yaml(_extended(path, str(parent)), depth - 1), values)


def _extended(path: Path, parent: str) -> Path:
    """The file that `extends: PARENT` in the file `path` means: one next to it, else a preset by its name."""
    for own in (path.parent / parent, path.parent / f"{parent}.yaml"):
        if own.is_file() and own.resolve() != path.resolve():
            return own
    known = presets("suites") | presets("ablations") | presets()
    stem = parent.removesuffix(".yaml")
    if stem in known:
        return known[stem]
    close = difflib.get_close_matches(stem, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UsageError(f"{path} extends '{parent}', which is neither a file in {path.parent} nor a preset{hint}")


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
