"""A source's files to shards: plans, works in parallel, joins parts, commits. Interrupted anywhere, it resumes there.

OUT/.work holds what is not finished: parts (one a source file), the rows of shards that are joined already, and at
the very end the new manifest and summary, which are then moved into place together. Shards are joined in an order fixed
by a hash of the paths, so that each is a random sample of the set and nothing depends on who finished first.

At the end, what is sharded is compared with the list: clips whose labels, licence or split changed move to new shards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av

import avpretrain
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.locks import LOCK_NAME, locked
from avpretrain.data.manifest import Manifest, is_shard_name
from avpretrain.data.names import escape_name, name_bytes
from avpretrain.data.place import DATASET_NAME
from avpretrain.data.sources import Item, Listing, find_items
from avpretrain.data.write.join import Joiner
from avpretrain.data.write.journal import Done, Ledger
from avpretrain.data.write.parts import Task, make_part, part_id, signature, untold, write_away, write_part
from avpretrain.data.write.revise import Revision, find_unlisted, revise
from avpretrain.data.write.settings import Engine, ShardConfig
from avpretrain.data.write.workers import run_contained

__all__ = ["Progress", "ShardReport", "make_shards"]

MAX_AWAY = 16
"""Files in a row that can't be read, through no fault of theirs, after which a run stops."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work on source files is."""

    done: int
    total: int
    clips: int
    skipped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What a run did."""

    manifest: Manifest
    added: int
    """Source files that this run worked on."""
    skipped: list[Done]
    """All files of the data set that could not be used."""
    dropped: dict[str, float]
    """Of the others, what was left out or filled in: amounts by description, in the unit with which it begins."""
    changed: list[str]
    """Files that changed since they were sharded; their old clips stay."""
    revision: Revision
    """What changed of clips that had been sharded before."""
    shared: list[str]
    """Files or contents that stand in several splits, a line each."""
    listing: Listing
    away: list[Done] = field(default_factory=list)
    """Files that could not be read in this run, through no fault of their own; the next run tries them again."""


def make_shards(
    src: Path, out: Path, cfg: ShardConfig, on_progress: Callable[[Progress], None] = lambda _: None
) -> ShardReport:
    """Turns the files of `src` into a sharded data set at `out`, or adds the new ones to the one that is there.

    Raises:
        UserError: no file was usable, or the disk is full, or another process writes there.
        UsageError: `out` is a data set that was written in another way, or something else.
    """
    listing = find_items(cfg.source, src, cfg.table, cfg.multi_label, cfg.separator)
    for split in sorted({item.split for item in listing.items}):
        if not is_shard_name(f"{split}-000000.tar"):
            raise UserError(f"{src}: the split {split!r} can't be part of a file name; give it a plain name")
    require_own_folder(out)
    with locked(out, "writing shards"):
        ledger = Ledger.open(out, _created_with(cfg))
        unlisted = find_unlisted(src, listing, ledger)
        if unlisted.dropped_from_list and cfg.unlisted == "refuse":
            ledger.close()
            raise UserError(_not_in_the_list(out, [escape_name(path) for path, _ in unlisted.dropped_from_list]))
        plan, changed = _plan(src, listing, ledger, cfg)
        try:
            unusable, away = _work(plan, cfg, ledger, on_progress) if plan else ([], [])
            revision = revise(listing, ledger, unlisted, drop=cfg.unlisted == "drop")
            Joiner(ledger, [], cfg.shard_mb * 1_000_000, cfg.shard_clips).move(revision.rows)
            if plan or ledger.joined or revision.retired.shards:
                name = cfg.name or out.resolve().name
                ledger.commit(name, _found(listing, cfg), unusable, listing.missing, away, revision.retired)
            else:
                ledger.close()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"can't write to {out}: {reason}; fix that and run again to resume") from error
        skipped = [done for done in ledger.done.values() if done.reason]
        if not (out / DATASET_NAME).is_file():
            raise UserError(_nothing_usable(src, [*away, *skipped], out))
        manifest = Manifest(out)
        return ShardReport(
            manifest=manifest,
            added=len(plan) - len(away),
            skipped=skipped,
            dropped=untold(done.dropped for done in ledger.done.values()),
            changed=changed,
            revision=revision,
            shared=in_several_splits(manifest),
            listing=listing,
            away=away,
        )


def _not_in_the_list(out: Path, paths: list[str]) -> str:
    return (
        f"{out} has clips of {len(paths)} files that the list does not name any more, e.g. {min(paths)}; "
        "--unlisted drop leaves them out, --unlisted keep leaves them as they are"
    )


def in_several_splits(manifest: Manifest) -> list[str]:
    """A line for each file, or media of equal bytes, whose clips stand in more than one split."""
    columns = manifest.table.select(["source", "sha256", "shard"]).to_pydict()
    first: dict[tuple[str, str], tuple[str, str]] = {}
    lines: dict[str, None] = {}
    for source, sha256, shard in zip(columns["source"], columns["sha256"], columns["shard"], strict=True):
        split = manifest.shards[shard].split
        for kind, value in (("file", source), ("content", sha256)):
            there, where = first.setdefault((kind, value), (source, split))
            if where != split:
                lines[f"{there} ({where}) and {source} ({split})"] = None
    return list(lines)


def require_own_folder(out: Path) -> None:
    """Keeps a data set from being written among other files.

    Raises:
        UsageError: `out` is a file, or holds files that are not ours.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder")
    names = {path.name for path in out.iterdir()} - {LOCK_NAME} if out.exists() else set()
    ours = not names or (out / DATASET_NAME).is_file() or (out / ".work").is_dir()
    if not ours and not (out / "skipped.csv").is_file():
        raise UsageError(f"{out} holds other files; name an empty or new folder, or a data set to add to")


def _created_with(cfg: ShardConfig) -> dict[str, Any]:
    return {"avpretrain": avpretrain.__version__, "av": av.__version__, "clips": asdict(cfg.clips)}


def _found(listing: Listing, cfg: ShardConfig) -> dict[str, Any]:
    return {"name": cfg.source, "files": len(listing.items), "missing": len(listing.missing)}


def _plan(src: Path, listing: Listing, ledger: Ledger, cfg: ShardConfig) -> tuple[list[Task], list[str]]:
    """Tasks in the order in which their clips will stand in the shards, and the files that changed."""
    tasks, changed, joined = [], [], ledger.joined_parts()
    for item in sorted(listing.items, key=_place):
        sign = signature(src / item.path)
        done = ledger.done.get((item.path, item.segment))
        if done is not None and not (done.reason and (cfg.retry or done.sign != sign)):
            if done.sign != sign:
                changed.append(escape_name(item.path))
            continue
        # a file whose clips are joined in part resumes from the part they came from, even if it has changed since
        name = joined.get((item.path, item.segment), (part_id(item, sign, cfg.clips), 0))[0]
        part = ledger.work / "parts" / name[:2] / name
        tasks.append(Task(item=item, root=src, sign=sign, part=part, cfg=cfg.clips, limits=cfg.limits))
    return tasks, changed


def _place(item: Item) -> tuple[str, str]:
    return item.split, hashlib.sha256(name_bytes(f"{item.path}\n{item.segment}")).hexdigest()


def _work(
    tasks: Sequence[Task], cfg: ShardConfig, ledger: Ledger, on_progress: Callable[[Progress], None]
) -> tuple[list[Done], list[Done]]:
    """Makes and joins all parts; returns the files that could not be used, and those that can't be read now.

    A file whose worker was killed for memory is tried once more at the end, alone.

    Raises:
        UserError: so many files in a row can't be read that the source seems to be away.
    """
    for note in (ledger.work / "parts").glob("*/*.away"):
        note.unlink()
    joiner = Joiner(ledger, tasks, cfg.shard_mb * 1_000_000, cfg.shard_clips)
    todo = [task for task in tasks if not joiner.has(task)]
    joiner.advance()
    done = len(tasks) - len(todo)
    on_progress(Progress(done, len(tasks), joiner.clips, len(joiner.skipped)))
    workers = min(cfg.workers or os.cpu_count() or 1, max(1, len(todo)))
    killed: list[Task] = []
    in_a_row = 0
    for outcome in _engine(cfg.engine)(make_part, todo, workers, cfg.timeout):
        if outcome.killed:
            killed.append(outcome.task)
            continue
        if outcome.failure is not None:
            write_part(outcome.task, [], outcome.failure)
        done += 1
        note = outcome.task.part.with_suffix(".away")
        in_a_row = in_a_row + 1 if note.is_file() else 0
        if in_a_row == MAX_AWAY:
            raise UserError(
                f"{MAX_AWAY} files in a row could not be read, the last of them {outcome.task.item.path}, which "
                f"{note.read_text()}; nothing is lost: fix that and run again to resume"
            )
        joiner.advance()
        on_progress(Progress(done, len(tasks), joiner.clips, len(joiner.skipped)))
    for outcome in _engine(cfg.engine)(make_part, killed, 1, cfg.timeout) if killed else ():
        if outcome.killed:
            write_away(outcome.task, "had its worker killed twice, as for want of memory")
        elif outcome.failure is not None:
            write_part(outcome.task, [], outcome.failure)
        done += 1
        on_progress(Progress(done, len(tasks), joiner.clips, len(joiner.skipped)))
    joiner.finish()
    return joiner.skipped, joiner.away


def _engine(name: Engine) -> Callable[..., Iterator[Any]]:
    if name == "ray":
        from avpretrain.data.write.ray_engine import run_on_ray

        return run_on_ray
    return run_contained


def _nothing_usable(src: Path, skipped: Sequence[Done], out: Path) -> str:
    example = f", e.g. {escape_name(skipped[0].path)} {skipped[0].reason}" if skipped else ""
    return (
        f"nothing in {src} was usable: {len(skipped)} files skipped{example}; all are listed in {out / 'skipped.csv'}"
    )
