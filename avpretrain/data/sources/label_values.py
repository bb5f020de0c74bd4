"""What a table's cell says of a clip: no label, one class, or several.

One rule for CSV, JSON lines, Parquet and manifests:

- null, NaN and empty text are no label;
- a number is the text of its value, so that 1, 1.0 and "1.0" are one class; true and false are the words;
- a list is several classes, each once, in the order given; an empty list is a clip that has none of them;
- what is nested deeper, bytes, and what else no class can be made of, is `Nested`.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from avpretrain.data.names import printable_name

Label = str | list[str]


class Nested:
    """Type of a value that can't be a class: a mapping, a list of lists, bytes."""


_NESTED = Nested()
_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_NO_LABEL = frozenset(["", "nan", "null"])
MAX_LIST_TEXT = 10_000
"""Characters up to which a cell is tried as a list."""


def label_value(value: Any) -> Label | Nested | None:
    """A value of any type as a label; none = no label."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        members = [_one(member) for member in value]
        if any(isinstance(member, Nested) for member in members):
            return _NESTED
        return list(dict.fromkeys(member for member in members if isinstance(member, str)))
    return _one(value)


def cell_value(text: str) -> Label | Nested | None:
    """The text of a CSV cell as a label. `["dog", "cat"]`, as JSON or Python writes a list, is several classes."""
    text = text.strip()
    if text.lower() in _NO_LABEL:
        return None
    if text.startswith("[") and text.endswith("]") and len(text) <= MAX_LIST_TEXT and "[" not in text[1:]:
        members = _list(text)
        if members is not None:
            return label_value(members)
    return plain_number(text)


def split_cell(text: str, separator: str) -> list[str]:
    """Several classes in one cell; empty ones are left out."""
    members = (plain_number(member.strip()) for member in text.split(separator))
    return list(dict.fromkeys(member for member in members if member.lower() not in _NO_LABEL))


def plain_number(text: str) -> str:
    """A whole number without its `.0`; any other text as it is."""
    match = _WHOLE.fullmatch(text)
    return match[1] if match else text


def _one(value: Any) -> str | Nested | None:
    if value is None or (isinstance(value, float | decimal.Decimal) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return plain_number(_utf8(value.strip())) or None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | decimal.Decimal):
        whole = math.isfinite(value) and value == int(value)
        return str(int(value)) if whole else str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return _NESTED


def _utf8(text: str) -> str:
    """JSON can spell characters that no text file can hold; they are escaped."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return printable_name(text)
    return text


def _list(text: str) -> list[Any] | None:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return value if isinstance(value, list) else None
    return None
