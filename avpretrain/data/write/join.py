"""Parts to shards: copies the clips of finished parts into tars, in the order of the tasks, as soon as it can."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avpretrain.core.files import MAX_LOG_BYTES, read_text
from avpretrain.data.manifest import Shard
from avpretrain.data.write.journal import Done, JoinedShard, Ledger
from avpretrain.data.write.move import moved_members
from avpretrain.data.write.parts import Task

END_OF_TAR = b"\0" * 1024


class Joiner:
    """Joins the parts of `tasks` into shards.

    A shard ends before the clip that would make it larger than `max_bytes`, or longer than `max_clips` (0 = any), and
    at the end of a split. So shards depend on the tasks and their parts only, not on when parts were finished. A part
    is deleted once a shard that holds its last clip is in place.
    """

    def __init__(self, ledger: Ledger, tasks: Sequence[Task], max_bytes: int, max_clips: int) -> None:
        self.ledger, self.tasks = ledger, tasks
        self.max_bytes, self.max_clips = max_bytes, max_clips
        self.next = 0
        self.pending: list[dict[str, Any]] = []
        self.pending_bytes = 0
        self.pending_split = ""
        self.skipped: list[Done] = []
        self.away: list[Done] = []
        """Files that can't be read in this run."""
        self.clips = 0
        self.joined = dict(ledger.joined_parts().values())

    def has(self, task: Task) -> bool:
        """Whether a task needs no more work: its part is there, or joined already."""
        return task.part.name in self.joined or any(task.part.with_suffix(s).is_file() for s in (".json", ".away"))

    def advance(self) -> None:
        """Takes up all parts that are next in order, and writes the shards that they fill."""
        while self.next < len(self.tasks) and self.has(self.tasks[self.next]):
            self._take(self.tasks[self.next])
            self.next += 1

    def finish(self) -> None:
        """Writes what is left; all parts must be there."""
        self.advance()
        self._write()

    def move(self, rows: Sequence[dict[str, Any]]) -> None:
        """Joins clips that stand in other shards already, in order, each into its row's `split`."""
        for row in rows:
            self._turn_to(row["split"])
            self._add(row)
        self._write()

    def _turn_to(self, split: str) -> None:
        if split != self.pending_split:
            self._write()
            self.pending_split = split

    def _take(self, task: Task) -> None:
        self._turn_to(task.item.split)
        index = task.part.with_suffix(".json")
        already = self.joined.get(task.part.name, 0)
        self.clips += already
        if not index.is_file():
            if task.part.with_suffix(".away").is_file():
                why = task.part.with_suffix(".away").read_text()
                self.away.append(Done(task.item.path, task.item.segment, task.sign, 0, why))
            return
        content = json.loads(read_text(index, MAX_LOG_BYTES))
        if content["reason"]:
            self.skipped.append(Done(task.item.path, task.item.segment, task.sign, 0, content["reason"]))
        rows = content["rows"]
        if already == len(rows):
            self._forget(task.part)
            return
        # a part that was joined in part is of the list of then; its clips move once all of them are joined
        self._turn_to(content.get("split", task.item.split))
        segment = task.item.segment
        for row in rows[already:]:
            row |= {"part": task.part.name, "sign": content["sign"], "last": row is rows[-1]}
            row["segment"] = None if segment is None else [segment.start, segment.end]
            self._add(row)
        self.clips += len(rows) - already

    def _add(self, row: dict[str, Any]) -> None:
        full = self.pending_bytes + row["bytes"] > self.max_bytes or len(self.pending) == self.max_clips
        if self.pending and full:
            self._write()
        self.pending.append(row)
        self.pending_bytes += row["bytes"]

    def _part(self, row: dict[str, Any]) -> Path:
        name: str = row["part"]
        return self.ledger.work / "parts" / name[:2] / name

    def _write(self) -> None:
        """Writes the pending clips as a shard: first the tar, then its rows, then the parts go."""
        rows, self.pending, self.pending_bytes = self.pending, [], 0
        if not rows:
            return
        name = self.ledger.next_name(self.pending_split)
        temporary = self.ledger.work / "shard.tmp"
        digest, offset = hashlib.sha256(), 0
        with temporary.open("wb") as file:
            for row in rows:
                data = self._read(row)
                for kind in ("video", "audio"):
                    row[f"{kind}_offset"] += offset if row[f"{kind}_ext"] else 0
                offset += len(data)
                file.write(data)
                digest.update(data)
            file.write(END_OF_TAR)
            digest.update(END_OF_TAR)
        self.ledger.retire([name])  # a tar that is in place when this run is killed goes, unless it is joined after all
        temporary.replace(self.ledger.out / name)
        shard = Shard(name, self.pending_split, len(rows), offset + len(END_OF_TAR), digest.hexdigest())
        self.ledger.record(JoinedShard(shard, rows))
        for row in rows:
            if row.get("last"):
                self._forget(self._part(row))

    def _read(self, row: dict[str, Any]) -> bytes:
        if "moved" in row:
            return moved_members(self.ledger.out, row)
        with self._part(row).with_suffix(".tar").open("rb") as file:
            file.seek(row["part_offset"])
            return file.read(row["bytes"])

    def _forget(self, part: Path) -> None:
        part.with_suffix(".tar").unlink(missing_ok=True)
        part.with_suffix(".json").unlink(missing_ok=True)
