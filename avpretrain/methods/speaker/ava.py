"""CSV files as AVA-ActiveSpeaker has them: a row for each face and frame, with a box and a label, or with a score.

Columns, in the order of files without a header: video_id, frame_timestamp (s), entity_box_x1, entity_box_y1,
entity_box_x2, entity_box_y2 (shares of the frame's width and height), label, entity_id, and in predictions score.
N rows.
"""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path, open_file

COLUMNS = (
    "video_id", "frame_timestamp", "entity_box_x1", "entity_box_y1", "entity_box_x2", "entity_box_y2", "label",
    "entity_id",
)  # fmt: skip
SCORE = "score"
SHORT = {name.removeprefix("entity_box_"): name for name in COLUMNS[2:6]} | {"timestamp": "frame_timestamp"}
"""Other names of columns, in files that have a header."""
LABELS = ("NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE")
SPEAKING = 1
"""Index of the one label that counts as speaking."""
MAX_CSV_BYTES = 2 << 30
"""Largest table that is read, unpacked (AVA's training labels have 350 MB)."""


@dataclass(frozen=True)
class AvaRows:
    """The rows of a table, in its order."""

    path: Path
    videos: tuple[str, ...]
    entities: tuple[str, ...]
    video_N: NDArray[np.int64]
    """Indices of `videos`."""
    entity_N: NDArray[np.int64]
    """Indices of `entities`."""
    time_N: NDArray[np.float64]
    """Seconds."""
    box_N4: NDArray[np.float64]
    """x1, y1, x2, y2."""
    label_N: NDArray[np.int64]
    """Indices of `LABELS`."""
    score_N: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.time_N)

    def uid(self, row: int) -> str:
        """The row's name, by which predictions are joined: frame_timestamp:entity_id."""
        return f"{self.time_N[row]}:{self.entities[self.entity_N[row]]}"


def read_rows(path: Path, scored: bool = False) -> AvaRows:
    """Reads a table, with a header or without one, also gzipped.

    Args:
        path: the file.
        scored: whether it must have scores, as predictions do; otherwise a ninth column may be there and is left out.

    Raises:
        UserError: it can't be read, or a value is wrong.
    """
    try:
        data = _bytes(path)
    except OSError as error:
        raise UserError(f"table {path} can't be read: {error.strerror or error}") from None
    first = data[: data.find(b"\n") + 1 or len(data)].decode(errors="replace").strip().split(",")
    if not data.strip():
        raise UserError(f"table {path} is empty; it takes rows of {','.join(COLUMNS)}")
    names, skip = _names(path, first, scored)
    wanted = [*COLUMNS, SCORE] if scored else list(COLUMNS)
    kinds = {name: pa.string() if name in ("video_id", "label", "entity_id") else pa.float64() for name in COLUMNS}
    try:
        table = csv.read_csv(
            io.BytesIO(data),
            read_options=csv.ReadOptions(column_names=names, skip_rows=skip),
            convert_options=csv.ConvertOptions(
                include_columns=wanted, column_types={**kinds, SCORE: pa.float64()}, null_values=[""]
            ),
        )
    except pa.ArrowInvalid as error:
        raise UserError(f"table {path}: {str(error).splitlines()[0]}; its columns are {', '.join(names)}") from None
    for name in wanted:
        if table[name].null_count:
            row = pc.index(pc.is_null(table[name]), True).as_py()
            raise UserError(f"table {path}: row {row + 1} has no {name}")
    numbers = {name: table[name].to_numpy() for name in wanted if pa.types.is_floating(table[name].type)}
    for name, values in numbers.items():
        wrong = np.flatnonzero(np.isnan(values) if name == SCORE else ~np.isfinite(values))
        if len(wrong):
            raise UserError(f"table {path}: row {wrong[0] + 1} has {name} {values[wrong[0]]}, which is no number")
    labels, label_N = _coded(table["label"])
    unknown = [label for label in labels if label not in LABELS]
    if unknown:
        row = int(np.flatnonzero(label_N == labels.index(unknown[0]))[0])
        raise UserError(f"table {path}: row {row + 1} has label {unknown[0]!r}; labels are {', '.join(LABELS)}")
    videos, video_N = _coded(table["video_id"])
    entities, entity_N = _coded(table["entity_id"])
    return AvaRows(
        path=path,
        videos=videos,
        entities=entities,
        video_N=video_N,
        entity_N=entity_N,
        time_N=numbers["frame_timestamp"],
        box_N4=np.stack([numbers[name] for name in COLUMNS[2:6]], axis=1),
        label_N=np.array([LABELS.index(label) for label in labels], np.int64)[label_N],
        score_N=numbers.get(SCORE),
    )


def _bytes(path: Path) -> bytes:
    """A file's bytes, unpacked.

    Raises:
        OSError: it can't be read, is damaged or too large.
    """
    with open_file(path) as file:
        try:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_CSV_BYTES + 1)
        except EOFError:
            raise OSError("its gzip stream is cut short") from None
        except zlib.error:
            raise OSError("its gzip stream is damaged") from None
    if len(data) > MAX_CSV_BYTES:
        raise OSError(f"is larger than {MAX_CSV_BYTES >> 30} GB")
    return data


def _names(path: Path, first: list[str], scored: bool) -> tuple[list[str], int]:
    """Names of the columns, and how many lines come before the first row.

    Raises:
        UserError: some are missing.
    """
    needed = [*COLUMNS, SCORE] if scored else list(COLUMNS)
    try:
        float(first[1])
    except (IndexError, ValueError):
        names = [SHORT.get(name.strip().strip('"'), name.strip().strip('"')) for name in first]
        missing = [name for name in needed if name not in names]
        if missing:
            raise UserError(
                f"table {path} lacks the columns {', '.join(missing)}; it takes {','.join(needed)}"
            ) from None
        return names, 1
    if not len(needed) <= len(first) <= len(COLUMNS) + 1:
        raise UserError(f"table {path} has {len(first)} columns, not {len(needed)}; it takes {','.join(needed)}")
    return [*COLUMNS, SCORE][: len(first)], 0


def _coded(column: pa.ChunkedArray) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The distinct texts of a column, by first appearance, and which of them each row has."""
    coded = column.combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.unify_dictionaries().combine_chunks()
    return tuple(coded.dictionary.to_pylist()), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def write_predictions(path: Path, rows: AvaRows, score_N: NDArray[np.floating]) -> None:
    """Writes the rows with scores, as AVA's evaluation takes predictions: no header, and one label alone.

    Args:
        rows: those of the ground truth.
        score_N: the higher, the more likely that the face speaks and is heard.
    """
    if len(score_N) != len(rows):
        raise ValueError(f"{len(score_N)} scores for {len(rows)} rows")
    text = pa.array(rows.videos).take(pa.array(rows.video_N)), pa.array(rows.entities).take(pa.array(rows.entity_N))
    columns = [text[0], rows.time_N, *rows.box_N4.T, [LABELS[SPEAKING]] * len(rows), text[1], score_N]
    table = pa.table([pa.array(column) for column in columns], names=[*COLUMNS, SCORE])
    options = csv.WriteOptions(include_header=False, quoting_style="needed")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        csv.write_csv(table, file, options)
