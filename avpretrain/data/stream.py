"""Whole shards from end to end, for stores where random access is dear; webdataset takes the tars apart.

The shards of an epoch are dealt out to the loader processes of all ranks, each of which mixes clips in a buffer. The
order depends on the number of ranks and processes, and a run resumes at the start of a shard: some clips come twice.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from avpretrain import draws
from avpretrain.batch import RawBatch
from avpretrain.data.clips import ClipSet, Encoded, Media, Sample, check_media, decode_window
from avpretrain.data.collate import MAX_SKIPS, Collate, gave_up, random_window, training_short_side
from avpretrain.data.decode import DecodeError
from avpretrain.data.manifest import Clip
from avpretrain.data.sampler import Order, check_divides
from avpretrain.data.storage import StorageError, Store
from avpretrain.errors import PROGRAM_ERRORS, UsageError, UserError
from avpretrain.modelconfig import InputConfig
from avpretrain.schedules import Step

BLOCK = 8 << 20
"""Bytes a request."""
BUFFER = 256
"""Encoded clips that are mixed, in each loader process."""
FIRST_FILL = 32
"""Clips in the buffer before the first one is taken, so that training starts soon."""


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

    def _samples(self, unit: int) -> Iterator[Sample | UserError]:
        """Decoded clips without end; damaged ones are passed over and noted on the next good one."""
        reasons: list[str] = []
        for epoch, item in self._mixed(unit):
            try:
                sample = self._decode(epoch, item)
            except (DecodeError, StorageError) as error:
                reasons.append(str(error))
                if len(reasons) >= MAX_SKIPS:
                    yield gave_up(reasons)
                continue
            yield Sample(sample.waveform_S, sample.frames_THWC, sample.index, sample.seed, tuple(reasons))
            reasons = []

    def _decode(self, epoch: int, item: Encoded | StorageError) -> Sample:
        if isinstance(item, StorageError):
            raise item
        check_media(item.clip, item.media, self._name(item.index))
        seed = draws.sample_seed(self.order.seed, epoch, item.index)
        return decode_window(item, self.input, seed, random_window(seed), training_short_side(self.input))

    def _name(self, row: int) -> str:
        store, shard = self.clips.shard_of(row)
        return f"{store.root}/{shard.name}"

    def _mixed(self, unit: int) -> Iterator[tuple[int, Encoded | StorageError]]:
        """Epoch and clip, of this process's shards, epoch after epoch, from the shard at which the run stands."""
        behind = self.seen // self.units
        for epoch in count():
            shards = self.order.shards(epoch)[unit :: self.units]
            while shards and behind >= self.clips.shard_sizes[shards[0]]:
                behind -= self.clips.shard_sizes[shards.pop(0)]
            behind = 0 if shards else behind
            mix = shuffle(BUFFER, initial=FIRST_FILL, rng=random.Random(f"{self.order.seed} {epoch} {unit}"))
            yield from mix((epoch, item) for shard in shards for item in self._shard(shard))

    def _shard(self, number: int) -> Iterator[Encoded | StorageError]:
        row = self.clips.shard_starts[number]
        store, shard = self.clips.shard_of(row)
        tar = io.BufferedReader(_Sequential(store, shard.name, shard.bytes))
        source = [{"url": shard.name, "stream": tar}]
        try:
            for offset, members in enumerate(group_by_keys(tar_file_expander(source))):
                clip = self.clips.clip(row + offset)
                yield Encoded(row + offset, clip, _media(clip, members))
        except (UserError, *PROGRAM_ERRORS):
            raise
        except Exception as error:  # tarfile and webdataset raise many kinds on damage
            yield StorageError(f"{self._name(row)} is damaged: {' '.join(str(a) for a in error.args[:1])}")


def _media(clip: Clip, members: dict[str, Any]) -> Media:
    return Media(*(members.get(ext, b"") if ext else b"" for ext in (clip.video_ext, clip.audio_ext)))


class _Sequential(io.RawIOBase):
    """A file of a store, read forwards in large requests."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        super().__init__()
        self._store, self._name, self._size = store, name, size
        self._place = 0
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._block and self._place < self._size:
            length = min(BLOCK, self._size - self._place)
            self._block = memoryview(self._store.read(self._name, self._place, length))
            self._place += length
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count
