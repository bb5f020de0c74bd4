"""What is known of a data set that is being written: files done, shards joined, and the commit that makes them visible.

A commit writes all new small files into OUT/.work/commit, whose name appears at once, and then moves them into place; a
run that finds it there moves the rest. So manifest, summary and lists change together, whenever the power fails.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avpretrain.data.log_mel_sums import LogMelSums
from avpretrain.data.manifest import (
    DATASET_NAME,
    MANIFEST_NAME,
    SCHEMA,
    Clip,
    Manifest,
    Shard,
    is_shard_name,
    write_manifest,
)
from avpretrain.data.media import Segment
from avpretrain.data.summary import EMPTY, summarise
from avpretrain.errors import UsageError
from avpretrain.files import MAX_LOG_BYTES, open_text, read_json, read_text

SOURCES_NAME, SKIPPED_NAME, MISSING_NAME = "sources.csv", "skipped.csv", "missing.csv"
PART_NAME = re.compile(r"[0-9a-f]{32}")
ItemKey = tuple[str, Segment | None]


@dataclass(frozen=True, slots=True)
class Done:
    """A source file that needs no more work."""

    path: str
    segment: Segment | None
    sign: tuple[int, int]
    """Size in bytes and time of change in nanoseconds, as it was."""
    clips: int
    reason: str
    """Why it was skipped; empty = it was not."""
    dropped: str = ""
    """What of it was left out or filled in (`parts.told`)."""


@dataclass(frozen=True, slots=True)
class JoinedShard:
    """A shard that is written but not yet committed, with the rows of its clips."""

    shard: Shard
    rows: list[dict[str, Any]]


@dataclass
class Ledger:
    """The state of a data set folder between runs."""

    out: Path
    created_with: dict[str, Any]
    base: Manifest | None
    """What is committed."""
    done: dict[ItemKey, Done]
    """Source files that are committed, used or skipped."""
    joined: list[JoinedShard] = field(default_factory=list)

    @property
    def work(self) -> Path:
        """Where unfinished things lie."""
        return self.out / ".work"

    @classmethod
    def open(cls, out: Path, created_with: dict[str, Any]) -> Ledger:
        """Reads the state, after finishing a commit that was cut short.

        Raises:
            UsageError: what is there was cut or encoded in another way.
        """
        work = out / ".work"
        if work.is_symlink() or (out / ".trash").is_symlink():
            raise UsageError(f"{work} is a link to another folder; remove it")
        _recover(out)
        base = Manifest(out) if (out / DATASET_NAME).is_file() else None
        if base is not None and base.bad:
            raise UsageError(f"{out} has {len(base.bad)} damaged rows in its manifest; nothing can be added to it")
        done = _read_sources(out / SOURCES_NAME) if base else []
        ledger = cls(out, created_with, base, {(d.path, d.segment): d for d in done})
        begun = ledger.work / "created_with.json"
        if begun.is_file():
            _refuse_other(out, read_json(begun, "settings"), created_with)
        if base is not None:
            _refuse_other(out, base.info["created_with"], created_with)
        ledger.work.mkdir(exist_ok=True)
        _write(begun, json.dumps(created_with))
        for path in sorted((ledger.work / "shards").glob("*.json")):
            content = json.loads(read_text(path, MAX_LOG_BYTES))
            shard = Shard(**content["shard"])
            if not is_shard_name(shard.name) or not all(PART_NAME.fullmatch(row["part"]) for row in content["rows"]):
                raise UsageError(f"{path} names files outside of {out}; delete {work}")
            ledger.joined.append(JoinedShard(shard, content["rows"]))
        return ledger

    def close(self) -> None:
        """Leaves no work folder behind where there was nothing to do."""
        if not (self.work / "parts").is_dir() and not self.joined:
            shutil.rmtree(self.work)

    def joined_parts(self) -> dict[ItemKey, tuple[str, int]]:
        """Of each file in the joined shards, the name of its part and how many of its clips are joined."""
        parts: dict[ItemKey, tuple[str, int]] = {}
        for joined in self.joined:
            for row in joined.rows:
                key = row["source"], None if row["segment"] is None else Segment(*row["segment"])
                parts[key] = row["part"], parts.get(key, ("", 0))[1] + 1
        return parts

    def shard_count(self, split: str) -> int:
        """Shards of a split, committed or joined."""
        committed = self.base.shards if self.base else []
        return sum(s.split == split for s in [*committed, *(joined.shard for joined in self.joined)])

    def record(self, joined: JoinedShard) -> None:
        """Remembers a shard whose tar is in place."""
        content = {"shard": {name: getattr(joined.shard, name) for name in Shard.__slots__}, "rows": joined.rows}
        _write(self.work / "shards" / f"{joined.shard.name}.json", json.dumps(content))
        self.joined.append(joined)

    def commit(
        self,
        name: str,
        source: Mapping[str, Any],
        skipped: Iterable[Done],
        missing: Sequence[str],
        away: Iterable[Done] = (),
    ) -> None:
        """Makes the joined shards part of the data set and clears the work away.

        Args:
            name: of the data set.
            source: what `dataset.json` says of where the clips come from.
            skipped: files that could not be used.
            missing: what the source's table names and the folder has not.
            away: files that could not be read in this run; they are listed, and the next run tries them again.
        """
        for done in [*self._used(), *skipped]:
            self.done[done.path, done.segment] = done
        staging = self.work / "commit.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        shards, clips, sums = self._everything()
        if clips:
            write_manifest(staging / MANIFEST_NAME, clips)
            seal = hashlib.sha256((staging / MANIFEST_NAME).read_bytes()).hexdigest()
            more = {"created_with": self.created_with, "source": dict(source), "manifest_sha256": seal}
            info = summarise(name, shards, clips, sums, more)
            _write(staging / DATASET_NAME, json.dumps(info, indent=2, ensure_ascii=False) + "\n")
        everything = sorted(self.done.values(), key=_by_place)
        _write_sources(staging / SOURCES_NAME, everything)
        _write_csv(
            staging / SKIPPED_NAME,
            ("path", "start", "end", "reason"),
            [(d.path, *_ends(d.segment), d.reason) for d in sorted([*everything, *away], key=_by_place) if d.reason],
        )
        _write_csv(staging / MISSING_NAME, ("name",), [(entry,) for entry in missing])
        staging.rename(self.work / "commit")
        _recover(self.out)

    def _used(self) -> list[Done]:
        counts: dict[ItemKey, Done] = {}
        for joined in self.joined:
            for row in joined.rows:
                segment = None if row["segment"] is None else Segment(*row["segment"])
                clips = counts[row["source"], segment].clips if (row["source"], segment) in counts else 0
                sign = row["sign"][0], row["sign"][1]
                dropped = row.get("dropped", "")  # stands in a file's last row
                counts[row["source"], segment] = Done(row["source"], segment, sign, clips + 1, "", dropped)
        return list(counts.values())

    def _everything(self) -> tuple[list[Shard], list[Clip], dict[str, LogMelSums]]:
        """Shards by name, all clips in their order, and the log-mel sums of each split."""
        clips: dict[str, list[Clip]] = {}
        sums: dict[str, LogMelSums] = {}
        shards = {joined.shard.name: joined.shard for joined in self.joined}
        if self.base is not None:
            shards |= {shard.name: shard for shard in self.base.shards}
            sums = {split: LogMelSums(*values) for split, values in self.base.info["log_mel"]["sums"].items()}
        numbers = {name: number for number, name in enumerate(sorted(shards))}
        for row in self.base.table.to_pylist() if self.base is not None else []:
            assert self.base is not None
            name = self.base.shards[row["shard"]].name
            clips.setdefault(name, []).append(Clip(**{**row, "shard": numbers[name]}))
        for joined in self.joined:
            split = joined.shard.split
            for row in joined.rows:
                values = {column: row[column] for column in SCHEMA.names if column != "shard"}
                clips.setdefault(joined.shard.name, []).append(Clip(**values, shard=numbers[joined.shard.name]))
                if row["log_mel"] is not None:
                    sums[split] = sums.get(split, EMPTY).plus(LogMelSums(*row["log_mel"]))
        ordered = [clip for name in numbers for clip in clips[name]]
        return [shards[name] for name in numbers], ordered, sums


def _recover(out: Path) -> None:
    """Finishes a commit, and the clearing away after one."""
    trash, commit = out / ".trash", out / ".work" / "commit"
    shutil.rmtree(trash, ignore_errors=True)
    if commit.is_dir():
        for path in commit.iterdir():
            path.replace(out / path.name)
        (out / ".work").rename(trash)
        shutil.rmtree(trash)


def _refuse_other(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    was, wanted = before.get("clips") or {}, now["clips"]
    different = [name for name in wanted if was.get(name) != wanted[name]]
    if different:
        listed = ", ".join(f"{name} {was.get(name)} (now {wanted[name]})" for name in different)
        raise UsageError(f"{out} was written with {listed}; use the same options, or another folder")


def _by_place(done: Done) -> tuple[str, float]:
    return done.path, done.segment.start if done.segment else 0.0


def _ends(segment: Segment | None) -> tuple[str, str]:
    return ("", "") if segment is None else (repr(segment.start), repr(segment.end))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


_SOURCE_COLUMNS = ("path", "start", "end", "bytes", "mtime_ns", "clips", "reason", "dropped")


def _write_sources(path: Path, done: Iterable[Done]) -> None:
    _write_csv(
        path, _SOURCE_COLUMNS, [(d.path, *_ends(d.segment), *d.sign, d.clips, d.reason, d.dropped) for d in done]
    )


def _read_sources(path: Path) -> list[Done]:
    if not path.is_file():
        return []
    done = []
    with open_text(path) as file:
        for row in csv.DictReader(file):
            segment = Segment(float(row["start"]), float(row["end"])) if row["start"] else None
            sign = int(row["bytes"]), int(row["mtime_ns"])
            done.append(Done(row["path"], segment, sign, int(row["clips"]), row["reason"], row.get("dropped") or ""))
    return done
