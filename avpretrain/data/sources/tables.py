"""Tables of labels as people have them: CSV with any common delimiter and encoding, JSON lines, Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avpretrain.core.errors import UserError
from avpretrain.core.files import NotAFileError, read_bytes

DELIMITERS = (",", ";", "\t", "|")
"""Tried in this order."""
FILE_COLUMNS = ("file", "filename", "file_name", "path")
"""Names of the column that names the file, in any case; the first that is there is taken."""
JSON_LINES = (".jsonl", ".ndjson")
TYPED = (*JSON_LINES, ".parquet")
"""Extensions of tables whose values have types; all others are CSV."""
MAX_TABLE_BYTES = 4 << 30
_KNOWN = frozenset([*FILE_COLUMNS, "mid"])


def read_table(table: Path) -> list[dict[str, Any]]:
    """Rows of a table by column name: texts from CSV, values of any JSON or Parquet type from the others.

    Raises:
        UserError: the file is not what its extension says.
    """
    if table.suffix.lower() in JSON_LINES:
        return _json_lines(table)
    if table.suffix.lower() == ".parquet":
        return _parquet(table)
    return list(read_rows(table))


def read_rows(table: Path, columns: list[str] | None = None, need: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file by column name.

    The delimiter is the first of `,` `;` tab `|` by which the header has a column that is known (or, where there is no
    header, by which the first row has enough columns). Encodings: UTF-8, with or without a byte order mark, and UTF-16
    with one. Cells that a row lacks are empty; columns without a name are left out.

    Args:
        columns: their names, where the file has no header.
        need: columns that must be there.

    Raises:
        UserError: the file is not CSV, or lacks a column; the message names those there are.
    """
    text = _decoded(table)
    stated = re.match(r"sep=(.)\r?\n", text)  # as Excel writes it
    text, mark = (text[stated.end() :], stated[1]) if stated else (text, _delimiter(text, columns))
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark, **_STYLE))
    except csv.Error as error:
        raise UserError(f"{table} is not a CSV file: {error}") from None
    rows = [row for row in rows if row]
    if columns is None:
        header, rows = ([name.strip() for name in rows[0]] if rows else []), rows[1:]
        _check_header(table, header, rows, need)
    else:
        header = columns
    named = [(place, name) for place, name in enumerate(header) if name]
    return [{name: row[place] if place < len(row) else "" for place, name in named} for row in rows]


_STYLE: dict[str, Any] = {"skipinitialspace": True}


def _check_header(table: Path, header: list[str], rows: list[list[str]], need: Sequence[str]) -> None:
    lacking = [name for name in need if name not in header]
    if lacking:
        raise UserError(f"{table} has no column '{lacking[0]}'; its columns: {listed(header)}")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{table} has the column '{twice}' twice; rename one")
    for number, row in enumerate(rows, 2):
        if any(cell.strip() for cell in row[len(header) :]):
            raise UserError(
                f"{table}, row {number}: {len(row)} cells under {len(header)} columns; "
                "put quotes around a cell that holds the delimiter"
            )


def listed(header: Sequence[str]) -> str:
    """The columns of a table, for a message."""
    shown = ", ".join(repr(name[:60]) for name in header[:12])
    return (shown or "none") + (f" and {len(header) - 12} more" if len(header) > 12 else "")


def _decoded(table: Path) -> str:
    try:
        data = read_bytes(table, MAX_TABLE_BYTES)
    except NotAFileError as error:
        raise UserError(f"{table} {error.strerror}; name a table of labels") from None
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not a text file in UTF-8 or UTF-16: {error}") from None
    return text


def _delimiter(text: str, columns: list[str] | None) -> str:
    """The delimiter of a table, read off its first row that is no comment."""
    start = next((line for line in io.StringIO(text, newline="") if line.strip() and not line.startswith("#")), "")
    heads = {mark: next(csv.reader([start], delimiter=mark, **_STYLE), []) for mark in DELIMITERS}
    if columns is not None:
        return next((mark for mark, head in heads.items() if len(head) >= len(columns)), DELIMITERS[0])
    known = (mark for mark, head in heads.items() if _KNOWN & {name.strip().lower() for name in head})
    return next(known, max(DELIMITERS, key=lambda mark: len(heads[mark])))


def _json_lines(table: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_decoded(table).split("\n"), 1):
        try:
            values = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{table}, line {number}: not JSON ({error})") from None
        if isinstance(values, dict):
            rows.append(values)
        elif values is not None:
            raise UserError(f"{table}, line {number}: not a JSON object")
    return rows


def _parquet(table: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(table).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{table} is not a Parquet file: {' '.join(str(error).split())[:200]}") from None
    return rows
