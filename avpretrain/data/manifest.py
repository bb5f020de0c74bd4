"""The table of a sharded data set: one row a clip, memory-mapped, so that ten million rows cost no memory.

A data set is a folder (or URL) with `SPLIT-000000.tar`, ... , `manifest.arrow` and `dataset.json`. Each shard holds
clips of one split only; rows are ordered by shard, then by offset. So splits and locality are ranges of rows, and
choosing a split costs memory by the shard, not by the clip.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from avpretrain.data.splits import chosen_splits, split_text
from avpretrain.errors import UserError

MANIFEST_NAME = "manifest.arrow"
DATASET_NAME = "dataset.json"
FORMAT = 1

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # unique, of [A-Za-z0-9_-]; the members of a clip are KEY.EXT
        ("shard", pa.int32()),  # index into dataset.json's shards
        ("video_ext", pa.string()),  # "" = no picture
        ("video_offset", pa.int64()),  # of the member's bytes in the tar
        ("video_length", pa.int64()),
        ("audio_ext", pa.string()),  # "" = no sound
        ("audio_offset", pa.int64()),
        ("audio_length", pa.int64()),
        ("duration", pa.float32()),  # seconds
        ("fps", pa.float32()),  # 0 = no picture
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("labels", pa.string()),  # JSON object: name -> text, or list of texts where there are several
        ("source", pa.string()),  # path of the file it was cut from, relative to the source folder
        ("start", pa.float32()),  # seconds into that file
        ("license", pa.string()),
        ("sha256", pa.string()),  # of the video bytes followed by the audio bytes
    ]
)


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
    """A data set's table and summary.

    Args:
        root: local folder that holds `manifest.arrow` and `dataset.json` (remote ones: see `storage`).

    Raises:
        UserError: it is not a data set, or its two files contradict each other.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        try:
            self.info: dict[str, Any] = json.loads((self.root / DATASET_NAME).read_text())
            source = pa.memory_map(str(self.root / MANIFEST_NAME))
            self.table = pa.ipc.open_file(source).read_all()
        except FileNotFoundError:
            raise UserError(
                f"{root} is not a sharded data set; make one with: avpretrain shards VIDEOS {root}"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, pa.ArrowInvalid) as error:
            raise UserError(f"{root}: its manifest is damaged ({error}); run avpretrain shards again") from None
        if self.info.get("format") != FORMAT:
            raise UserError(
                f"{root} has data format {self.info.get('format')}, this version reads {FORMAT}; shard it again"
            )
        self.shards = [Shard(**shard) for shard in self.info["shards"]]
        if sum(shard.clips for shard in self.shards) != len(self.table):
            raise UserError(f"{root}: {DATASET_NAME} and {MANIFEST_NAME} disagree; run avpretrain shards again")

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


def write_manifest(path: Path, clips: Sequence[Clip]) -> None:
    """Writes the table; rows must be ordered by shard, then offset."""
    columns = {name: [getattr(clip, name) for clip in clips] for name in SCHEMA.names}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=SCHEMA))
