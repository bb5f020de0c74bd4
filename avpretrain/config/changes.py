"""Configs with some keys set to other values, and nested mappings as dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from avpretrain.config.reader import from_dict, to_dict
from avpretrain.config.train import EngineConfig

C = TypeVar("C", bound=EngineConfig)


def with_changes(cfg: C, changes: Mapping[str, Any]) -> C:
    """A config with some dotted keys set to other values.

    Raises:
        UsageError: a key or a value is wrong, or they do not go together.
    """
    return from_dict(type(cfg), nested(flat(to_dict(cfg)) | dict(changes)))


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        dotted |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return dotted


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, key = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return tree
