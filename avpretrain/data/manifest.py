"""The table of a sharded data set: one row a clip, memory-mapped, so that ten million rows cost no memory.

A data set is a folder (or URL) with `SPLIT-000000.tar`, ... , `manifest.arrow` and `dataset.json`. Each shard holds
clips of one split only; rows are ordered by shard, then by offset. So splits and locality are ranges of rows, and
choosing a split costs memory by the shard, not by the clip.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from avpretrain.core.errors import UserError
from avpretrain.core.files import open_descriptor, parse_json, read_bytes
from avpretrain.core.terminal import brief
from avpretrain.data.place import DATASET_NAME, MANIFEST_NAME, why_no_data_set
from avpretrain.data.rows import MAX_BAD_ROWS, SHA256, bad_rows, repaired
from avpretrain.data.splits import chosen_splits, split_text

__all__ = ["Clip", "Manifest", "Shard", "write_manifest"]

FORMAT = 1

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # unique, of [A-Za-z0-9_-]; the members of a clip are KEY.EXT
        ("shard", pa.int32()),  # index into dataset.json's shards
        ("video_ext", pa.string()),  # "" = no video
        ("video_offset", pa.int64()),  # of the member's bytes in the tar
        ("video_length", pa.int64()),
        ("audio_ext", pa.string()),  # "" = no audio
        ("audio_offset", pa.int64()),
        ("audio_length", pa.int64()),
        ("duration", pa.float32()),  # seconds
        ("fps", pa.float32()),  # 0 = no video
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("labels", pa.string()),  # JSON object: name -> text, or list of texts where there are several
        ("source", pa.string()),  # path of the file it was cut from, relative to the source folder
        ("start", pa.float32()),  # seconds into that file
        ("license", pa.string()),
        ("sha256", pa.string()),  # of the video bytes followed by the audio bytes
    ]
)


SHARD_NAME = re.compile(r"(?!\.)[^\x00-\x1f\x7f-\x9f/\\:*?\"<>|]{1,240}\.tar")
"""A shard's file name: one component of a path, on every system, not hidden, that ends in .tar."""


MAX_NAME = 1000
"""Characters of a data set's or a label's name."""
MAX_LOG_MEL = 1e4
"""Largest mean or standard deviation of a log-mel spectrogram, natural logarithm."""


def is_shard_name(name: object) -> bool:
    """Whether a text can name a shard: it never leads out of the data set's folder."""
    return isinstance(name, str) and SHARD_NAME.fullmatch(name) is not None and name.isprintable()


def check_summary(info: Mapping[str, Any]) -> None:
    """Compares the types and ranges of `dataset.json` with what they must be; other keys are let be.

    Raises:
        ValueError: one is wrong; the message names it.
    """
    count, number = (lambda v: type(v) is int and 0 <= v < 1 << 62), (lambda v: type(v) in (int, float) and _finite(v))
    text = lambda v: isinstance(v, str)  # noqa: E731
    name = lambda v: text(v) and len(v) <= MAX_NAME  # noqa: E731
    stat = lambda v: number(v) and abs(v) <= MAX_LOG_MEL  # noqa: E731
    wanted: dict[str, Callable[[Any], bool]] = {
        "name": name, "clips": count, "hours": number, "bytes": count, "log_mel": lambda v: isinstance(v, dict),
        "fingerprint": lambda v: text(v) and SHA256.fullmatch(v) is not None, "shards": lambda v: isinstance(v, list),
        "created_with": lambda v: isinstance(v, dict),
        "labels": lambda v: isinstance(v, dict)
        and all(name(k) and isinstance(x, list) and all(map(text, x)) for k, x in v.items()),
    }  # fmt: skip
    _check(info, wanted, DATASET_NAME)
    log_mel = info["log_mel"]
    _check(log_mel, {"mean": stat, "std": lambda v: stat(v) and v >= 0, "clips": count}, "log_mel")
    sums, splits = log_mel.get("sums", {}), log_mel.get("splits", [])
    if not (isinstance(sums, dict) and all(_are_sums(v) for v in sums.values())):
        raise ValueError(f"log_mel: 'sums' can't be {brief(sums)}")
    if not (isinstance(splits, list) and all(map(text, splits))):
        raise ValueError(f"log_mel: 'splits' can't be {brief(splits)}")
    of_shard: dict[str, Callable[[Any], bool]] = {
        "name": is_shard_name, "split": lambda v: text(v) and 0 < len(v) <= 240, "clips": count, "bytes": count,
        "sha256": text,
    }  # fmt: skip
    names = set()
    for i, shard in enumerate(info["shards"]):
        if not isinstance(shard, dict):
            raise ValueError(f"{DATASET_NAME}: shards[{i}] is no object")
        _check(shard, of_shard, f"shards[{i}]")
        names.add(shard["name"])
    if len(names) < len(info["shards"]):
        raise ValueError(f"{DATASET_NAME}: two shards have the same name")
    if sum(shard["bytes"] for shard in info["shards"]) != info["bytes"]:
        raise ValueError(f"{DATASET_NAME}: 'bytes' is not the sum of its shards'")


def _are_sums(value: object) -> bool:
    """Whether it can be a split's `LogMelSums`."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(v) in (int, float) and _finite(v) for v in value)
        and min(value[:2]) >= 0
    )


def _check(values: Mapping[str, Any], wanted: Mapping[str, Callable[[Any], bool]], where: str) -> None:
    for name, fits in wanted.items():
        if name not in values:
            raise ValueError(f"{where} lacks '{name}'")
        if not fits(values[name]):
            raise ValueError(f"{where}: '{name}' can't be {values[name]!r:.80}")


def _finite(value: float) -> bool:
    return abs(value) < 1e300  # a whole number may be too large for a float, and NaN is not less than anything


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of the manifest; fields as in `SCHEMA`."""

    key: str
    shard: int
    video_ext: str
    video_offset: int
    video_length: int
    audio_ext: str
    audio_offset: int
    audio_length: int
    duration: float
    fps: float
    width: int
    height: int
    labels: str
    source: str
    start: float
    license: str
    sha256: str

    @property
    def label_dict(self) -> dict[str, str | list[str]]:
        labels: dict[str, str | list[str]] = json.loads(self.labels)
        return labels


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file."""

    name: str
    split: str
    clips: int
    bytes: int
    sha256: str


class Manifest:
    """A data set's table and summary, checked: names, types and ranges; a row that is impossible is in `bad`.

    A bad row stands in the table as a clip without audio and video.

    Args:
        root: local folder that holds `manifest.arrow` and `dataset.json` (remote ones: see `storage`).
        bad: bad rows and their reasons, where they are known already (in loader processes); none = look for them.

    Raises:
        UserError: it is not a data set, its two files contradict each other, or too many rows are bad.
    """

    def __init__(self, root: Path, bad: Mapping[int, str] | None = None) -> None:
        self.root = Path(root)
        try:
            summary = parse_json(read_bytes(self.root / DATASET_NAME))
            buffer = _mapped(self.root / MANIFEST_NAME)
        except FileNotFoundError:
            raise UserError(why_no_data_set(self.root)) from None
        except NotADirectoryError:
            raise UserError(f"{root} is a file; name the folder that avpretrain shards wrote") from None
        except ValueError as error:
            raise UserError(f"{root}: its manifest is damaged ({error}); run avpretrain shards again") from None
        except OSError as error:
            raise UserError(f"{root} can't be read: {Path(str(error.filename)).name} {error.strerror}") from None
        if not isinstance(summary, dict):
            raise UserError(
                f"{root}: its manifest is damaged ({DATASET_NAME} is no object); run avpretrain shards again"
            )
        self.info: dict[str, Any] = summary
        if self.info.get("format") != FORMAT:
            raise UserError(
                f"{root} has data format {brief(self.info.get('format'))}, this version reads {FORMAT}; shard it again"
            )
        try:
            check_summary(self.info)
            self.shards = [Shard(**{name: shard[name] for name in Shard.__slots__}) for shard in self.info["shards"]]
            self.table = _read_table(buffer, validate=bad is None)
        except (ValueError, pa.ArrowException) as error:
            raise UserError(f"{root}: its manifest is damaged ({_line(error)}); run avpretrain shards again") from None
        if not sum(shard.clips for shard in self.shards) == self.info["clips"] == len(self.table):
            raise UserError(f"{root}: {DATASET_NAME} and {MANIFEST_NAME} disagree; run avpretrain shards again")
        self.bad: dict[int, str] = dict(self._find_bad() if bad is None else bad)
        """Row to the reason why it can't be used."""
        self._replace_bad()

    def _find_bad(self) -> dict[int, str]:
        bad: dict[int, str] = {}
        for row, reason in bad_rows(self.table, self.shard_starts, [shard.bytes for shard in self.shards]):
            bad[row] = reason
            if len(bad) > MAX_BAD_ROWS:
                break
        if len(bad) > MAX_BAD_ROWS:
            row, reason = next(iter(bad.items()))
            raise UserError(
                f"{self.root}: more than {MAX_BAD_ROWS} of its {len(self.table)} rows in {MANIFEST_NAME} are damaged "
                f"(row {row}: {reason}); fetch it again, or shard the source again"
            )
        hours = pc.sum(self.table.column("duration").cast(pa.float64())).as_py() if not bad and len(self) else None
        if hours is not None and abs(hours / 3600 - self.info["hours"]) > 0.001 + 0.01 * self.info["hours"]:
            raise UserError(f"{self.root}: {DATASET_NAME} and {MANIFEST_NAME} disagree on the hours; shard it again")
        return bad

    def _replace_bad(self) -> None:
        if not self.bad:
            return
        parts, start = [], 0
        for row in sorted(self.bad):
            values = repaired(self.table.slice(row, 1).to_pylist()[0], row, self.shard_of(row))
            parts += [self.table.slice(start, row - start), pa.Table.from_pylist([values], schema=SCHEMA)]
            start = row + 1
        self.table = pa.concat_tables([*parts, self.table.slice(start)])

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def shard_starts(self) -> list[int]:
        """First row of each shard, and the number of rows at the end."""
        starts = [0]
        for shard in self.shards:
            starts.append(starts[-1] + shard.clips)
        return starts

    @property
    def fingerprint(self) -> str:
        """Order-free hash of the data set's clips."""
        return str(self.info["fingerprint"])

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in order of their first shard; clips without one are in 'train'."""
        return list(dict.fromkeys(shard.split for shard in self.shards))

    def clip(self, row: int) -> Clip:
        """The clip in a row.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a manifest with {len(self)} rows")
        batch = self.table.slice(row, 1)
        return Clip(**{name: batch.column(i)[0].as_py() for i, name in enumerate(SCHEMA.names)})

    def shard_of(self, row: int) -> int:
        return bisect_right(self.shard_starts, row) - 1

    def shards_of_split(self, split: str | Sequence[str]) -> list[int]:
        """Indices of the shards of one split or several (see `splits.chosen_splits`), or of all for 'all'.

        Raises:
            UserError: there is none of them.
        """
        wanted = chosen_splits(split, self.splits)
        chosen = [i for i, shard in enumerate(self.shards) if shard.split in wanted]
        if not chosen:
            raise UserError(f"{self.root} has no split '{split_text(split)}'; it has: {', '.join(self.splits)}")
        return chosen


def _mapped(path: Path) -> pa.Buffer:
    """The bytes of an ordinary file, mapped."""
    descriptor = open_descriptor(path)
    try:
        return pa.py_buffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    except OSError as error:  # it names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


MAX_BATCHES = 1 << 16
"""Most record batches of a table: finding a row takes longer with each."""


def _read_table(buffer: pa.Buffer, validate: bool) -> pa.Table:
    """The table in an Arrow file, without a copy of its columns.

    Raises:
        ValueError, pa.ArrowException: it is damaged, has other columns, or is compressed.
    """
    with pa.ipc.open_file(buffer) as reader:
        if not reader.schema.equals(SCHEMA):
            raise ValueError(f"{MANIFEST_NAME} has other columns or types than data format {FORMAT}")
        batches = reader.num_record_batches
    if batches > MAX_BATCHES:
        raise ValueError(f"{MANIFEST_NAME} is in more than {MAX_BATCHES} pieces")
    # A file is a stream between two marks. The stream is what is read, since only its messages can be seen before.
    stream = buffer.slice(8)
    messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(stream))
    for message in messages:
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise ValueError(f"{MANIFEST_NAME} is compressed")  # a small file could ask for any amount of memory
    table = pa.ipc.open_stream(pa.BufferReader(stream)).read_all()
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"{MANIFEST_NAME} has other columns or types than data format {FORMAT}")
    if validate:
        table.validate(full=True)
    return table


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message holds a record batch with a `compression` (FlatBuffers: Message.header.compression)."""

    def field(table: int, number: int) -> int:
        """Where a table's field lies; 0 = it has none."""
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        entry = 4 + 2 * number
        if entry >= struct.unpack_from("<H", metadata, vtable)[0]:
            return 0
        offset: int = struct.unpack_from("<H", metadata, vtable + entry)[0]
        return table + offset if offset else 0

    def below(place: int) -> int:
        return place + int(struct.unpack_from("<I", metadata, place)[0])

    header = field(below(0), 2)
    return header == 0 or field(below(header), 3) != 0


def write_manifest(path: Path, clips: Sequence[Clip]) -> None:
    """Writes the table; rows must be ordered by shard, then offset."""
    columns = {name: [getattr(clip, name) for clip in clips] for name in SCHEMA.names}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=SCHEMA))
