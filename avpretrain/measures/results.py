"""Results as values: written to JSON by one part, read back by another as the same class.

A result is a frozen dataclass. Its JSON has the fields' names; a file may hold more than the fields, which is left out.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from avpretrain.core.errors import UserError
from avpretrain.core.files import read_json

R = TypeVar("R", bound="Result")


class WrongShapeError(ValueError):
    """A value is not of its field's type; the message names the field."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured; subclasses add fields of numbers, text, tuples, mappings and other results."""

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types; `from_json` gives an equal result."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls: type[R], values: Any, where: str = "") -> R:
        """From what `to_json` gave.

        Args:
            where: name of the value inside a larger one, for the message.

        Raises:
            WrongShapeError: a field is missing, or its value has another type.
        """
        if not isinstance(values, Mapping):
            raise WrongShapeError(f"{where or 'the whole'} is no mapping")
        hints = typing.get_type_hints(cls)
        given = {}
        for field in dataclasses.fields(cls):
            name = f"{where}.{field.name}" if where else field.name
            if field.name in values:
                given[field.name] = _typed(hints[field.name], values[field.name], name)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise WrongShapeError(f"'{name}' is missing")
        return cls(**given)

    @classmethod
    def read(cls: type[R], path: Path, what: str, verb: str) -> R:
        """From a file.

        Args:
            what: names the result in messages.
            verb: what writes it anew, as typed.

        Raises:
            UserError: there is no such file, or it holds something else.
        """
        try:
            return cls.from_json(read_json(path, what))
        except WrongShapeError as error:
            raise UserError(f"{path} holds no {what} ({error}); write it anew with: {verb}") from None


@dataclass(frozen=True, kw_only=True)
class Estimate(Result):
    """A value and its 95% interval."""

    value: float | None
    """None where it is undefined or infinite."""
    ci: tuple[float | None, float | None] = (None, None)
    """None twice where it is unknown."""


@dataclass(frozen=True, kw_only=True)
class Measured(Result):
    """A result of a checkpoint on a data set: what every one of them says of where it comes from."""

    format: int
    checkpoint: Mapping[str, Any]
    """path, sha256, and `seen` where it is known."""
    data: Mapping[str, Any]
    """shards, fingerprint."""
    model: Mapping[str, Any]
    seed: int
    versions: Mapping[str, Any]
    hardware: Mapping[str, Any]
    commit: str | None


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type of a field: JSON's lists become tuples, mappings become results."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            try:
                return _typed(part, value, where)
            except WrongShapeError as error:
                reason = error
        raise reason
    if origin is Literal:
        if value in parts:
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_typed(kind, one, f"{where}[{i}]") for i, (kind, one) in pairs)
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _typed(parts[1], one, f"{where}.{key}") for key, one in value.items()}
    elif isinstance(hint, type) and issubclass(hint, Result):
        return hint.from_json(value, where)
    elif _is_plain(hint, value):
        try:
            return float(value) if hint is float else value
        except OverflowError:  # a whole number of hundreds of digits
            pass
    raise WrongShapeError(f"'{where}' is {str(value)[:40]!r}")


def _is_plain(hint: Any, value: Any) -> bool:
    """Whether a number, a text or none is of its field's type; a truth value is no number."""
    kinds = {float: int | float, int: int, str: str, bool: bool, types.NoneType: types.NoneType}
    return hint in kinds and isinstance(value, kinds[hint]) and (hint is bool or not isinstance(value, bool))
