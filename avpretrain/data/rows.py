"""Whether the rows of a manifest can be what they claim, found once, when a data set is opened, a block at a time.

A stranger's manifest is no more to be trusted than a file: its numbers become reads, buffers and array sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from avpretrain.core.files import parse_json

Bools = NDArray[np.bool_]

BLOCK = 1 << 16
"""Rows that are looked at together."""
MAX_BAD_ROWS = 4096
"""Bad rows of a data set up to which it can be used."""
MAX_CLIP_BYTES = 512 << 20
"""Largest clip, audio and video together: it is decoded from memory."""
MAX_SECONDS = 1e6
MAX_FPS = 1e5
MAX_SIDE = 1 << 16

MAX_TEXT = {"labels": 1 << 20, "source": 1 << 16, "license": 1 << 16}
"""Most bytes of a row's texts."""

KEY = re.compile(r"[A-Za-z0-9_-]{1,255}")
EXTENSION = re.compile(r"[a-z0-9]{1,8}")
SHA256 = re.compile(r"[0-9a-f]{64}")

_WS = r"[ \t\r\n]*"
# lone surrogates are no text: they can't be written to a file
_TEXT = (
    r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u(?:[0-9a-cefA-CEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}'
    r'|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*"'
)
_VALUE = rf"(?:{_TEXT}|\[{_WS}(?:{_TEXT}{_WS}(?:,{_WS}{_TEXT}{_WS})*)?\])"
_PAIR = rf"{_WS}{_TEXT}{_WS}:{_WS}{_VALUE}{_WS}"
LABELS = rf"^{_WS}\{{(?:{_WS}|{_PAIR}(?:,{_PAIR})*)\}}{_WS}$"
"""A JSON object of texts and lists of texts, as RE2 (linear in time) and `re` read it."""


def bad_rows(table: pa.Table, starts: Sequence[int], shard_bytes: Sequence[int]) -> Iterator[tuple[int, str]]:
    """(row, reason) of each row that is impossible, ascending.

    Args:
        table: of the manifest's schema, its buffers validated.
        starts: first row of each shard, and the number of rows at the end.
        shard_bytes: size of each shard.
    """
    first_row, bytes_of = np.asarray(starts, dtype=np.int64), np.asarray(shard_bytes, dtype=np.int64)
    row = 0
    for batch in table.to_batches(max_chunksize=BLOCK):
        rows = np.arange(row, row + len(batch))
        shard_N = np.searchsorted(first_row, rows, side="right") - 1
        for index, reason in _bad_of_block(batch, shard_N, bytes_of[shard_N]):
            yield row + index, reason
        row += len(batch)


def _bad_of_block(batch: pa.RecordBatch, shard_N: NDArray[np.int64], room_N: NDArray[np.int64]) -> Any:
    nulls = np.zeros(len(batch), dtype=bool)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            nulls |= column.is_null().to_numpy(zero_copy_only=False)
            filler: Any = "" if pa.types.is_string(batch.schema.field(name).type) else 0
            batch = batch.set_column(batch.schema.get_field_index(name), name, column.fill_null(filler))
    number: Callable[[str], Any] = lambda name: batch.column(name).to_numpy(zero_copy_only=False)  # noqa: E731
    has: dict[str, Bools] = {}
    bad: list[tuple[str, Bools]] = [("it has no value in some column", nulls)]
    total_N = np.zeros(len(batch), dtype=np.int64)
    for side in ("video", "audio"):
        offset_N, length_N = number(f"{side}_offset"), number(f"{side}_length")
        has[side] = pc.not_equal(batch.column(f"{side}_ext"), "").to_numpy(zero_copy_only=False)
        bad.append((f"{side}_ext is no file extension", has[side] & ~_match(batch.column(f"{side}_ext"), EXTENSION)))
        bad.append((f"{side}_ext and {side}_length contradict each other", has[side] != (length_N > 0)))
        outside = (offset_N < 0) | (length_N < 0) | (offset_N > room_N) | (length_N > room_N - offset_N)
        bad.append((f"its {side} lies outside its shard", outside))
        total_N += np.clip(length_N, 0, MAX_CLIP_BYTES + 1)
    bad += [
        ("it has neither audio nor video", ~has["video"] & ~has["audio"]),
        (f"it is larger than {MAX_CLIP_BYTES >> 20} MiB", total_N > MAX_CLIP_BYTES),
        ("its shard is another one than its place in the table", number("shard") != shard_N),
        ("its duration is impossible", ~_within(number("duration"), 0, MAX_SECONDS) | (number("duration") == 0)),
        ("its fps is impossible", ~_within(number("fps"), 0, MAX_FPS)),
        ("its start is impossible", ~_within(number("start"), -MAX_SECONDS, MAX_SECONDS * 10)),
        ("its width or height is impossible", ~_within(number("width"), 0, MAX_SIDE)
         | ~_within(number("height"), 0, MAX_SIDE)),
        ("its key is not of [A-Za-z0-9_-]", ~_match(batch.column("key"), KEY)),
        ("its labels are no JSON object of texts", ~_labels(batch.column("labels"))),
        *((f"its {name} is longer than {most} bytes", _longer(batch.column(name), most))
          for name, most in MAX_TEXT.items()),
        ("its sha256 is none", ~_match(batch.column("sha256"), SHA256)),
    ]  # fmt: skip
    wrong = np.logical_or.reduce([mask for _, mask in bad])
    for index in np.flatnonzero(wrong):
        yield int(index), next(reason for reason, mask in bad if mask[index])


def _within(values: NDArray[Any], low: float, high: float) -> Bools:
    """False for NaN too."""
    return (values >= low) & (values <= high)


def _match(column: pa.Array, pattern: re.Pattern[str]) -> Bools:
    """Which texts match as a whole; a column of few different values, or of right ones, costs next to nothing."""
    if pattern in _PLAIN and _all_plain(column, *_PLAIN[pattern]):
        return np.ones(len(column), dtype=bool)
    return _of_distinct(column, lambda distinct: pc.match_substring_regex(distinct, f"^(?:{pattern.pattern})$"))


_PLAIN: dict[re.Pattern[str], tuple[bytes, int, int]] = {
    KEY: (b"AZaz09__--", 1, 255),
    SHA256: (b"09af", 64, 64),
}
"""Patterns that are ranges of bytes (first and last of each), and a shortest and longest length."""


def _all_plain(column: pa.Array, ranges: bytes, shortest: int, longest: int) -> bool:
    """Whether every text is of such bytes and lengths; ten times faster than a regular expression."""
    _, offsets, values = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(ends)
    if len(lengths) == 0 or values is None or lengths.min() < shortest or lengths.max() > longest:
        return False
    text = np.frombuffer(values, np.uint8)[ends[0] : ends[-1]]
    fits = np.zeros(len(text), dtype=bool)
    for low, high in zip(ranges[::2], ranges[1::2], strict=True):
        fits |= text - np.uint8(low) <= high - low  # below `low` it wraps around
    return bool(fits.all())


def _longer(column: pa.Array, most: int) -> Bools:
    return pc.greater(pc.binary_length(column), most).to_numpy(zero_copy_only=False)


def _labels(column: pa.Array) -> Bools:
    return _of_distinct(column, lambda distinct: pc.match_substring_regex(distinct, LABELS))


def _of_distinct(column: pa.Array, test: Callable[[pa.Array], Any]) -> Bools:
    if len(column) > 1000 and len(column[:1000].unique()) > 500:  # nearly all differ
        return test(column).to_numpy(zero_copy_only=False)
    coded = column.dictionary_encode()
    return test(coded.dictionary).to_numpy(zero_copy_only=False)[coded.indices.to_numpy(zero_copy_only=False)]


def repaired(row: dict[str, Any], number: int, shard: int) -> dict[str, Any]:
    """A bad row as one of a clip without audio and video, with what is good of its key, labels, source and licence."""
    key, labels = row["key"], row["labels"]
    kept = {
        "key": key if isinstance(key, str) and KEY.fullmatch(key) else f"row-{number}",
        "labels": labels
        if isinstance(labels, str) and len(labels) <= MAX_TEXT["labels"] and _is_labels(labels)
        else "{}",
        **{name: (row[name] or "")[: MAX_TEXT[name] // 4] for name in ("source", "license")},
    }
    blank = {name: "" if name.endswith("ext") or name == "sha256" else 0 for name in row}
    return {**blank, **kept, "shard": shard}


def _is_labels(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return re.match(LABELS, text) is not None
