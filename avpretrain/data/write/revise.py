"""What a new list says of clips that are sharded already: other labels, another split, no place in the set any more.

Shards that hold such a clip are replaced by new ones, under new names; the media are copied byte for byte. Nothing is
decoded but the audio of clips that leave their split, whose log-mel statistics follow them. All of it is a function of
what is committed, what is joined and the list, so a run that was cut short resumes where it was.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avpretrain.core.errors import UserError
from avpretrain.data.names import escape_name, name_bytes
from avpretrain.data.sources import Item, Listing
from avpretrain.data.write.journal import ItemKey, JoinedShard, Ledger, Retired
from avpretrain.data.write.move import moving_row, sums_of
from avpretrain.data.write.parts import clip_key, labels_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Unlisted:
    """Source files that have clips and are not in the list."""

    dropped_from_list: list[ItemKey] = field(default_factory=list)
    """The list could name them and does not: the files are there, or its table says all that it has."""
    gone: list[ItemKey] = field(default_factory=list)
    """The files are gone; they may have been moved, or deleted to save space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Revision:
    """What is to change."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Clips to write into new shards, in order (see `move.moving_row`)."""
    retired: Retired = Retired()  # noqa: RUF009
    relabelled: list[str] = field(default_factory=list)
    """Files whose labels or licence changed."""
    resplit: list[str] = field(default_factory=list)
    """Files that went to another split."""
    removed: list[str] = field(default_factory=list)
    """Files whose clips are left out from now on."""
    kept: list[str] = field(default_factory=list)
    """Files that are gone, or not in the list, whose clips stay."""


def stem(item: Item) -> str:
    """What the keys of all clips of an item begin with."""
    return clip_key(item, 0).rsplit("-", 1)[0]


def find_unlisted(src: Path, listing: Listing, ledger: Ledger) -> Unlisted:
    """Compares what has clips with the list."""
    listed = {(item.path, item.segment) for item in [*listing.items, *(listing.absent or [])]}
    known = [*(key for key, done in ledger.done.items() if done.clips), *ledger.joined_parts()]
    unlisted = Unlisted()
    for key in dict.fromkeys(known):
        if key not in listed:
            nameable = listing.absent is not None or (src / key[0]).exists()
            (unlisted.dropped_from_list if nameable else unlisted.gone).append(key)
    return unlisted


def revise(listing: Listing, ledger: Ledger, unlisted: Unlisted, drop: bool) -> Revision:
    """What must change so that labels, licences and splits are those of the list; discards stale new shards.

    Args:
        drop: leave out the clips of files that the list could name and does not. Files that were moved or renamed lose
            the clips of their old names in any case, so that no clip stands in the set under both.

    Raises:
        UserError: a clip that is to move is damaged, or two files share a key.
    """
    wanted = _by_stem([*listing.items, *(listing.absent or [])])
    stems = {stem(_known(key)): key for key in [*unlisted.dropped_from_list, *unlisted.gone]}
    dropped = {stem(_known(key)) for key in unlisted.dropped_from_list} if drop else set()
    dropped |= _twins(ledger, wanted, {one: key for one, key in stems.items() if one not in dropped})
    review = _Review(ledger, wanted, dropped)
    review.read()
    names = {one: escape_name(key[0]) for one, key in stems.items()}
    return Revision(
        rows=sorted(review.rows(), key=lambda row: _order(row, wanted)),
        retired=Retired(
            shards=frozenset(review.stale), sums=tuple(review.leaving()), files=frozenset(stems[one] for one in dropped)
        ),
        relabelled=_paths(review.relabelled, wanted),
        resplit=_paths(review.resplit, wanted),
        removed=sorted({names[one] for one in dropped}),
        kept=sorted({names[one] for one in stems.keys() - dropped}),
    )


def _known(key: ItemKey) -> Item:
    return Item(path=key[0], segment=key[1])


def _by_stem(items: list[Item]) -> dict[str, Item]:
    by_stem: dict[str, Item] = {}
    for item in items:
        other = by_stem.setdefault(stem(item), item)
        if (other.path, other.segment) != (item.path, item.segment):
            raise UserError(
                f"{escape_name(item.path)} and {escape_name(other.path)} would get the same keys; rename one of them"
            )
    return by_stem


def _paths(stems: Collection[str], wanted: Mapping[str, Item]) -> list[str]:
    return sorted({escape_name(wanted[one].path) for one in stems})


def _order(row: Mapping[str, Any], wanted: Mapping[str, Item]) -> tuple[str, str, str]:
    """As the tasks are ordered: by split, then by a hash of path and segment, then by the clip's number."""
    one, number = row["key"].rsplit("-", 1)
    item = wanted.get(one)
    text = f"{item.path}\n{item.segment}" if item is not None else one
    return row["split"], hashlib.sha256(name_bytes(text)).hexdigest(), number


def _rows_of_base(ledger: Ledger, columns: list[str]) -> Iterator[dict[str, Any]]:
    if ledger.base is not None:
        for batch in ledger.base.table.select(columns).to_batches(max_chunksize=65_536):
            yield from batch.to_pylist()


def _twins(ledger: Ledger, wanted: Mapping[str, Item], suspects: Mapping[str, ItemKey]) -> set[str]:
    """Those of the files `suspects` that were moved or renamed to a file of the list.

    Their clips are, byte for byte, those of that file; or, since another version of the encoder writes other bytes, the
    files had the same size and time of change.
    """
    if not suspects:
        return set()
    clips: defaultdict[str, dict[str, str]] = defaultdict(dict)
    rows = [row for joined in ledger.joined for row in joined.rows]
    for row in [*_rows_of_base(ledger, ["key", "sha256"]), *rows]:
        one, number = row["key"].rsplit("-", 1)
        clips[one][number] = row["sha256"]
    contents = {one: tuple(sha for _, sha in sorted(numbered.items())) for one, numbered in clips.items()}
    signs = ledger.signs()
    listed = {content for one, content in contents.items() if one in wanted}
    listed_signs = {(*signs[key], key[1]) for item in wanted.values() if (key := (item.path, item.segment)) in signs}
    return {
        one
        for one, key in suspects.items()
        if contents.get(one) in listed or (key in signs and (*signs[key], key[1]) in listed_signs)
    }


class _Review:
    """Looks at every clip that is committed or joined.

    Args:
        wanted: items by stem; clips of none of them stay as they are, unless they are `dropped`.
    """

    def __init__(self, ledger: Ledger, wanted: Mapping[str, Item], dropped: set[str]) -> None:
        self.ledger, self.wanted, self.dropped = ledger, wanted, dropped
        self.labels = {one: labels_json(item) for one, item in wanted.items()}
        self.stale: set[str] = set()
        self.relabelled: set[str] = set()
        self.resplit: set[str] = set()
        self.done: set[str] = set()
        """Keys of clips that stand in their new shard already."""

    def read(self) -> None:
        """Finds the shards to be replaced."""
        shards = self.ledger.base.shards if self.ledger.base is not None else []
        for row in _rows_of_base(self.ledger, ["key", "shard", "labels", "license"]):
            self._look(row, shards[row["shard"]].name, shards[row["shard"]].split)
        moved = [joined for joined in self.ledger.joined if any("moved" in row for row in joined.rows)]
        for joined in self.ledger.joined:
            if joined not in moved:
                for row in joined.rows:
                    self._look(row, joined.shard.name, joined.shard.split)
        for joined in moved:
            if self._holds(joined):
                self.done |= {row["key"] for row in joined.rows}
            else:
                self.ledger.discard(joined)

    def _look(self, row: Mapping[str, Any], shard: str, split: str) -> None:
        one = row["key"].rsplit("-", 1)[0]
        item = self.wanted.get(one)
        relabelled = item is not None and (row["labels"] != self.labels[one] or row["license"] != item.license)
        resplit = item is not None and split != item.split
        if relabelled:
            self.relabelled.add(one)
        if resplit:
            self.resplit.add(one)
        if relabelled or resplit or one in self.dropped:
            self.stale.add(shard)

    def _holds(self, joined: JoinedShard) -> bool:
        """Whether a shard of moved clips is what the list asks for."""
        for row in joined.rows:
            one = row["key"].rsplit("-", 1)[0]
            if one in self.dropped or row["moved"]["shard"] not in self.stale:
                return False
            if {name: row[name] for name in ("labels", "license", "split")} != self._changes(row, row["split"]):
                return False
        return True

    def _changes(self, row: Mapping[str, Any], split: str) -> dict[str, str]:
        one = row["key"].rsplit("-", 1)[0]
        item = self.wanted.get(one)
        if item is None:
            return {"labels": row["labels"], "license": row["license"], "split": split}
        return {"labels": self.labels[one], "license": item.license, "split": item.split}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Clips of stale shards that stay in the set and have no new place yet."""
        for row, shard, split, committed in self._stale_rows():
            if row["key"] in self.done or row["key"].rsplit("-", 1)[0] in self.dropped:
                continue
            new = moving_row(row, shard, self.ledger.out, self._changes(row, split))
            if committed:  # its sums are in the summary, under its old split
                sums = sums_of(self.ledger.out, new) if new["split"] != split else None
                new |= {"log_mel": None if sums is None else list(sums)}
            yield new

    def leaving(self) -> Iterator[tuple[str, Any]]:
        """Split and log-mel sums of committed clips that leave their split, or the set."""
        for row, shard, split, committed in self._stale_rows():
            one = row["key"].rsplit("-", 1)[0]
            leaves = one in self.dropped or self._changes(row, split)["split"] != split
            if committed and leaves:
                moved = {"shard": shard, "audio_offset": row["audio_offset"]}
                sums = sums_of(self.ledger.out, {**row, "moved": moved})
                if sums is not None:
                    yield split, sums

    def _stale_rows(self) -> Iterator[tuple[dict[str, Any], str, str, bool]]:
        """Row, shard, split and whether it is committed, of all clips in stale shards."""
        base = self.ledger.base
        if base is not None:
            for number, shard in enumerate(base.shards):
                if shard.name in self.stale:
                    first, last = base.shard_starts[number : number + 2]
                    for row in base.table.slice(first, last - first).to_pylist():
                        yield row, shard.name, shard.split, True
        for joined in self.ledger.joined:
            if joined.shard.name in self.stale:
                for row in joined.rows:
                    yield row, joined.shard.name, joined.shard.split, False
