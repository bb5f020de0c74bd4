"""What is known of a data set that is being written: files done, shards joined, and the commit that makes them visible.

A commit writes all new small files into OUT/.work/commit, whose name appears at once, and then moves them into place; a
run that finds it there moves the rest. So manifest, summary and lists change together, whenever the power fails. Shards
that the new manifest does not name any more are deleted after that; OUT/.work/retired holds a file of each one's name.
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

from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import MAX_LOG_BYTES, open_text, read_json, read_text
from avpretrain.data.log_mel_sums import LogMelSums
from avpretrain.data.manifest import (
    SCHEMA,
    Clip,
    Manifest,
    Shard,
    is_shard_name,
    write_manifest,
)
from avpretrain.data.media import Segment
from avpretrain.data.names import escape_name, printable_name, unescape_name
from avpretrain.data.place import DATASET_NAME, MANIFEST_NAME
from avpretrain.data.summary import EMPTY, summarise

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
    """A shard that is written but not yet committed, with the rows of its clips.

    A row that has `moved` was taken from another shard, which its shard is to replace; the others come from parts.
    """

    shard: Shard
    rows: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Retired:
    """What a commit takes out of the data set."""

    shards: frozenset[str] = frozenset()
    """Names; their clips stand in joined shards, or nowhere."""
    sums: tuple[tuple[str, LogMelSums], ...] = ()
    """Split and log-mel sums of committed clips that leave their split."""
    files: frozenset[ItemKey] = frozenset()
    """Source files that are no part of the set any more."""


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
            if not is_shard_name(shard.name) or not all(
                "moved" in row or PART_NAME.fullmatch(row["part"]) for row in content["rows"]
            ):
                raise UsageError(f"{path} names files outside of {out}; delete {work}")
            ledger.joined.append(JoinedShard(shard, content["rows"]))
        return ledger

    def close(self) -> None:
        """Leaves no work folder behind where there was nothing to do."""
        if not (self.work / "parts").is_dir() and not self.joined:
            _delete_retired(self.out)
            shutil.rmtree(self.work)

    def joined_parts(self) -> dict[ItemKey, tuple[str, int]]:
        """Of each file in the joined shards, the name of its part and how many of its clips are joined."""
        parts: dict[ItemKey, tuple[str, int]] = {}
        for joined in self.joined:
            for row in joined.rows:
                if "moved" not in row:
                    key = _item_key(row)
                    parts[key] = row["part"], parts.get(key, ("", 0))[1] + 1
        return parts

    def signs(self) -> dict[ItemKey, tuple[int, int]]:
        """Of each file with clips, committed or joined, its size and time of change when it was sharded."""
        return {key: done.sign for key, done in self.done.items() if done.clips} | {
            (done.path, done.segment): done.sign for done in self._used()
        }

    def next_name(self, split: str) -> str:
        """Name of the next shard of a split; none that is committed or joined has it."""
        committed = self.base.shards if self.base else []
        taken = (s for s in [*committed, *(joined.shard for joined in self.joined)] if s.split == split)
        numbers = (re.fullmatch(r"(\d+)\.tar", s.name.removeprefix(f"{split}-")) for s in taken)
        return f"{split}-{max((int(match[1]) for match in numbers if match), default=-1) + 1:06d}.tar"

    def record(self, joined: JoinedShard) -> None:
        """Remembers a shard whose tar is in place."""
        content = {"shard": {name: getattr(joined.shard, name) for name in Shard.__slots__}, "rows": joined.rows}
        _write(self.work / "shards" / f"{joined.shard.name}.json", json.dumps(content))
        self.joined.append(joined)

    def discard(self, joined: JoinedShard) -> None:
        """Gives up a shard that is not committed."""
        self.joined.remove(joined)
        self.retire([joined.shard.name])
        (self.work / "shards" / f"{joined.shard.name}.json").unlink()
        (self.out / joined.shard.name).unlink(missing_ok=True)

    def retire(self, names: Iterable[str]) -> None:
        """Has the next commit delete shards, unless its manifest names them."""
        for name in sorted(names):
            (self.work / "retired").mkdir(exist_ok=True)
            (self.work / "retired" / name).touch()

    def commit(
        self,
        name: str,
        source: Mapping[str, Any],
        skipped: Iterable[Done],
        missing: Sequence[str],
        away: Iterable[Done] = (),
        retired: Retired = Retired(),
    ) -> None:
        """Makes the joined shards part of the data set and clears the work away.

        Args:
            name: of the data set.
            source: what `dataset.json` says of where the clips come from.
            skipped: files that could not be used.
            missing: what the source's table names and the folder has not.
            away: files that could not be read in this run; they are listed, and the next run tries them again.
            retired: what leaves the data set.

        Raises:
            UserError: no clip would be left.
        """
        shards, clips, sums = self._everything(retired)
        if self.base is not None and not clips:
            raise UserError(f"no clip of {self.out} is in the list any more; delete that folder, or name another one")
        self.retire(retired.shards)
        for done in [*self._used(), *skipped]:
            self.done[done.path, done.segment] = done
        for key in retired.files:
            self.done.pop(key, None)
        staging = self.work / "commit.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
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
            [
                (escape_name(d.path), *_ends(d.segment), d.reason)
                for d in sorted([*everything, *away], key=_by_place)
                if d.reason
            ],
        )
        _write_csv(staging / MISSING_NAME, ("name",), [(printable_name(entry),) for entry in missing])
        staging.rename(self.work / "commit")
        _recover(self.out)

    def _used(self) -> list[Done]:
        counts: dict[ItemKey, Done] = {}
        for joined in self.joined:
            for row in joined.rows:
                if "moved" not in row:
                    key = _item_key(row)
                    clips = counts[key].clips if key in counts else 0
                    dropped = row.get("dropped", "")  # stands in a file's last row
                    counts[key] = Done(*key, (row["sign"][0], row["sign"][1]), clips + 1, "", dropped)
        return list(counts.values())

    def _everything(self, retired: Retired) -> tuple[list[Shard], list[Clip], dict[str, LogMelSums]]:
        """Shards by name, all clips in their order, and the log-mel sums of each split."""
        clips: dict[str, list[Clip]] = {}
        sums: dict[str, LogMelSums] = {}
        kept = [joined for joined in self.joined if joined.shard.name not in retired.shards]
        shards = {joined.shard.name: joined.shard for joined in kept}
        if self.base is not None:
            shards |= {shard.name: shard for shard in self.base.shards if shard.name not in retired.shards}
            sums = {split: LogMelSums(*values) for split, values in self.base.info["log_mel"]["sums"].items()}
        numbers = {name: number for number, name in enumerate(sorted(shards))}
        for row in self.base.table.to_pylist() if self.base is not None else []:
            assert self.base is not None
            name = self.base.shards[row["shard"]].name
            if name in numbers:
                clips.setdefault(name, []).append(Clip(**{**row, "shard": numbers[name]}))
        for joined in kept:
            split = joined.shard.split
            for row in joined.rows:
                values = {column: row[column] for column in SCHEMA.names if column != "shard"}
                clips.setdefault(joined.shard.name, []).append(Clip(**values, shard=numbers[joined.shard.name]))
                if row["log_mel"] is not None:
                    sums[split] = sums.get(split, EMPTY).plus(LogMelSums(*row["log_mel"]))
        for split, gone in retired.sums:
            sums[split] = sums[split].minus(gone)
        sums = {split: values for split, values in sums.items() if values.clips}
        ordered = [clip for name in numbers for clip in clips[name]]
        return [shards[name] for name in numbers], ordered, sums


def _item_key(row: Mapping[str, Any]) -> ItemKey:
    """The source file of a joined shard's row."""
    return unescape_name(row["source"]), None if row["segment"] is None else Segment(*row["segment"])


def _recover(out: Path) -> None:
    """Finishes a commit, and the clearing away after one."""
    trash, commit = out / ".trash", out / ".work" / "commit"
    shutil.rmtree(trash, ignore_errors=True)
    if commit.is_dir():
        for path in commit.iterdir():
            path.replace(out / path.name)
        _delete_retired(out)
        (out / ".work").rename(trash)
        shutil.rmtree(trash)


def _delete_retired(out: Path) -> None:
    """Deletes shards that were replaced or never recorded, once the manifest that does without them is in place."""
    retired, summary = out / ".work" / "retired", out / DATASET_NAME
    if retired.is_dir():
        shards = read_json(summary, "data set summary")["shards"] if summary.is_file() else ()
        named = {shard["name"] for shard in shards}
        for marker in sorted(retired.iterdir()):
            if marker.name not in named:
                (out / marker.name).unlink(missing_ok=True)


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
    rows = [(escape_name(d.path), *_ends(d.segment), *d.sign, d.clips, d.reason, d.dropped) for d in done]
    _write_csv(path, _SOURCE_COLUMNS, rows)


def _read_sources(path: Path) -> list[Done]:
    if not path.is_file():
        return []
    done = []
    with open_text(path) as file:
        for row in csv.DictReader(file):
            segment = Segment(float(row["start"]), float(row["end"])) if row["start"] else None
            sign = int(row["bytes"]), int(row["mtime_ns"])
            name, dropped = unescape_name(row["path"]), row.get("dropped") or ""
            done.append(Done(name, segment, sign, int(row["clips"]), row["reason"], dropped))
    return done
