"""The order of samples, a pure function of (seed, epoch, position): without state, so a run resumes at any sample.

An epoch is a random order of the shards, cut into windows of a few shards; the rows of a window are shuffled into one
another. So reading stays local, and a position is found from its own window alone. Memory: by the shard, plus a window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch

from avpretrain.config.schedules import Step
from avpretrain.core import draws
from avpretrain.core.errors import UsageError

__all__ = ["BatchPlaces", "Order", "Place"]

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in training a sample stands."""

    epoch: int
    position: int
    """In the order of its epoch, from 0."""


class Order:
    """Order of the rows of a data set in each epoch of training.

    Args:
        shard_sizes: clips of each shard; the rows of a shard follow those of the shard before it.
        window: shards that are shuffled into one another.
    """

    def __init__(self, shard_sizes: Sequence[int], window: int, seed: int) -> None:
        self.window, self.seed = window, seed
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._first_rows = np.concatenate([[0], np.cumsum(self._sizes)])
        self._clips = int(self._first_rows[-1])
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self._clips

    def place(self, seen: int) -> Place:
        """Where the sample stands before which `seen` samples were seen, over all epochs."""
        return Place(*divmod(seen, self._clips))

    def row(self, place: Place, skip: int = 0) -> int:
        """The row of the sample at `place`, or of its `skip`-th successor in the same window (which is a circle)."""
        epoch = _kept(self._epochs, place.epoch, lambda: self._order_shards(place.epoch))
        window = bisect_right(epoch.starts, place.position) - 1
        rows = _kept(self._windows, (place.epoch, window), lambda: self._shuffle_rows(epoch, place.epoch, window))
        return int(rows[(place.position - epoch.starts[window] + skip) % len(rows)])

    def sample_seed(self, place: Place) -> int:
        """Seed of everything that is drawn for the sample."""
        return draws.sample_seed(self.seed, place.epoch, place.position)

    def shards(self, epoch: int) -> list[int]:
        """The shards that hold clips, in the order in which the epoch reads them."""
        shards = _permutation(draws.sample_seed(self.seed, epoch, -1), "shards", len(self._sizes))
        return [int(shard) for shard in shards if self._sizes[shard]]

    def _order_shards(self, epoch: int) -> _Epoch:
        shards = self.shards(epoch)
        windows = [shards[i : i + self.window] for i in range(0, len(shards), self.window)]
        sizes = [int(self._sizes[window].sum()) for window in windows]
        return _Epoch(windows, [0, *accumulate(sizes[:-1])])

    def _shuffle_rows(self, epoch: _Epoch, number: int, window: int) -> np.ndarray:
        spans = [np.arange(self._first_rows[s], self._first_rows[s + 1]) for s in epoch.windows[window]]
        rows = np.concatenate(spans)
        return rows[_permutation(draws.sample_seed(self.seed, number, -2 - window), "rows", len(rows))]


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The windows of an epoch: their shards, and their first positions."""

    windows: list[list[int]]
    starts: list[int]


def _kept(memory: dict[K, V], key: K, make: Callable[[], V]) -> V:
    """`memory[key]`, made when it is not there; only the last two are kept."""
    if key not in memory:
        while len(memory) > 1:
            del memory[next(iter(memory))]
        memory[key] = make()
    return memory[key]


def _permutation(seed: int, stream: str, count: int) -> np.ndarray:
    # Sorted hashes rather than a library's shuffle, whose result may change with the library's version.
    return draws.permutation(torch.tensor([seed]), stream, count)[0].numpy()


@dataclass(frozen=True)
class BatchPlaces:
    """The places of one rank's share of each step's batch; an iterable that torch's DataLoader takes as batch sampler.

    Rank r of W takes every W-th sample of the batch, from the r-th on.

    Raises:
        UsageError: a batch does not divide evenly among the ranks (when iterated).
    """

    order: Order
    steps: Iterable[Step]
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[Place]]:
        for step in self.steps:
            check_divides(step.batch_size, self.world)
            positions = range(step.seen + self.rank, step.seen + step.batch_size, self.world)
            yield [self.order.place(position) for position in positions]


def check_divides(batch_size: int, world: int) -> None:
    """Raises a UsageError unless the batch divides evenly among the ranks."""
    if batch_size % world:
        raise UsageError(
            f"a batch of {batch_size} clips does not divide among {world} ranks; "
            f"set schedule.batch.multiple to a multiple of {world}"
        )


def spread(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`rows` in runs of `size`, the last one shorter."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
