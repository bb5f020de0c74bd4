"""Whole shards from end to end, for stores where random access is expensive; the manifest says where clips lie.

The shards of an epoch are dealt out to the loader processes of all ranks, each of which mixes clips in a buffer. The
order depends on the number of ranks and processes, and a run resumes at the start of a shard: some clips come twice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle

from avpretrain.config.model import InputConfig
from avpretrain.config.schedules import Step
from avpretrain.core import draws
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.batch import RawBatch
from avpretrain.data.container import DecodeError
from avpretrain.data.manifest import Clip
from avpretrain.data.read.clips import ClipSet, Encoded, Media, Sample, check_media, decode_window
from avpretrain.data.read.collate import MAX_SKIPS, Collate, gave_up, random_window, training_short_side
from avpretrain.data.read.sampler import Order, check_divides
from avpretrain.data.read.storage import StorageError, Store

BLOCK = 8 << 20
"""Bytes a request."""
BUFFER = 256
"""Encoded clips that are mixed, in each loader process."""
FIRST_FILL = 32
"""Clips in the buffer before the first one is taken, so that training starts soon."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Clips of a shard, one after another, that can't be read, and why."""

    reasons: tuple[str, ...]


class ShardStream(IterableDataset[RawBatch | UserError]):
    """One rank's batches, made in turn by its loader processes.

    Args:
        steps: the plan from the point of resumption on.

    Raises:
        UsageError: there are fewer shards than processes, or a batch does not divide among the ranks.
    """

    def __init__(
        self,
        clips: ClipSet,
        order: Order,
        input: InputConfig,
        steps: Sequence[Step],
        rank: int,
        world: int,
        workers: int,
    ) -> None:
        for step in steps:
            check_divides(step.batch_size, world)
        self.units = world * max(1, workers)
        shards = sum(size > 0 for size in clips.shard_sizes)
        if shards < self.units:
            raise UsageError(
                f"data.mode stream needs a shard for each loader process: there are {shards} shards and {self.units} "
                "processes; lower data.num_workers, make smaller shards, or use data.mode random"
            )
        self.clips, self.order, self.input = clips, order, input
        self.sizes = [step.batch_size // world for step in steps]
        self.seen = steps[0].seen if steps else 0
        self.rank, self.workers = rank, max(1, workers)
        self.collate = Collate(input)

    def __iter__(self) -> Iterator[RawBatch | UserError]:
        info = get_worker_info()
        worker = info.id if info else 0
        samples = self._samples(self.rank * self.workers + worker)
        for size in self.sizes[worker :: self.workers]:
            batch = [next(samples) for _ in range(size)]
            yield self.collate(batch)

    def _samples(self, unit: int) -> Iterator[Sample]:
        """Decoded clips without end; damaged ones are passed over and noted on the next good one.

        Raises:
            UserError: too often in a row it was none; clips that a shard lost in one stretch are one failure.
        """
        reasons: list[str] = []
        failures = 0
        for epoch, item in self._mixed(unit):
            try:
                sample = None if isinstance(item, Lost) else self._decode(epoch, item)
                reasons += item.reasons if isinstance(item, Lost) else ()
            except DecodeError as error:
                reasons.append(str(error))
                sample = None
            if sample is not None:
                yield Sample(sample.waveform_S, sample.frames_THWC, sample.index, sample.seed, tuple(reasons))
                reasons, failures = [], 0
                continue
            failures += 1
            if failures >= MAX_SKIPS:
                raise gave_up(reasons)

    def _decode(self, epoch: int, item: Encoded) -> Sample:
        seed = draws.sample_seed(self.order.seed, epoch, item.index)
        return decode_window(item, self.input, seed, random_window(seed), training_short_side(self.input))

    def _mixed(self, unit: int) -> Iterator[tuple[int, Encoded | Lost]]:
        """Epoch and clip, of this process's shards, epoch after epoch, from the shard at which the run stands."""
        behind = self.seen // self.units
        for epoch in count():
            shards = self.order.shards(epoch)[unit :: self.units]
            while shards and behind >= self.clips.shard_sizes[shards[0]]:
                behind -= self.clips.shard_sizes[shards.pop(0)]
            behind = 0 if shards else behind
            mix = shuffle(BUFFER, initial=FIRST_FILL, rng=random.Random(f"{self.order.seed} {epoch} {unit}"))
            yield from mix((epoch, item) for shard in shards for item in self._shard(shard))

    def _shard(self, number: int) -> Iterator[Encoded | Lost]:
        """Every clip of a shard, or what became of it."""
        first = self.clips.shard_starts[number]
        store, shard = self.clips.shard_of(first)
        tar = _Forward(store, shard.name, shard.bytes)
        reasons: list[str] = []
        unread = 0
        for row in range(first, first + self.clips.shard_sizes[number]):
            clip = self.clips.clip(row)
            try:
                if unread >= MAX_SKIPS:
                    raise StorageError(reasons[-1])  # the rest of a shard that is missing or cut short
                encoded = Encoded(row, clip, _checked(tar, clip, f"{store.root}/{shard.name}"))
            except StorageError as error:
                reasons.append(str(error))
                unread += 1
                continue
            if reasons:
                yield Lost(tuple(reasons))
                reasons, unread = [], 0
            yield encoded
        if reasons:
            yield Lost(tuple(reasons))


class _Forward:
    """A file of a store, read forwards in large requests, and where it is damaged in small ones."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size
        self._start, self._held = 0, b""
        self._requests: list[int] = []
        self._sound = True

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes; cheap where offsets rise.

        Raises:
            StorageError: they can't be read.
        """
        held_end, end = self._start + len(self._held), offset + length
        if self._start <= offset and end <= held_end:
            return self._held[offset - self._start : end - self._start]
        if offset < self._start or not self._sound:
            return self._store.read(self._name, offset, length)
        kept = self._held[offset - self._start :]
        start = offset + len(kept)
        try:
            more = self._store.read(self._name, start, max(end - start, min(BLOCK, self._size - start)))
        except StorageError:
            self._sound = False
            return self._store.read(self._name, offset, length)
        self._requests = [*(self._requests if kept else []), start]
        self._start, self._held = offset, kept + more
        return self._held[:length]

    def forget(self) -> bool:
        """Drops what is held here and in a local cache, so that it is fetched again; whether there was such a cache."""
        dropped = [self._store.forget(self._name, offset) for offset in self._requests]
        self._start, self._held, self._requests = 0, b"", []
        return any(dropped)


def _checked(tar: _Forward, clip: Clip, shard: str) -> Media:
    """A clip's members, equal to those that were sharded; a damaged copy in a local cache is fetched anew, once."""
    for last in (False, True):
        video = tar.read(clip.video_offset, clip.video_length) if clip.video_length else b""
        audio = tar.read(clip.audio_offset, clip.audio_length) if clip.audio_length else b""
        media = Media(video, audio)
        try:
            check_media(clip, media, shard)
            return media
        except StorageError:
            if last or not tar.forget():
                raise
    raise AssertionError
