"""The order of samples, a pure function of (seed, epoch, position): without state, so a run resumes at any sample.

An epoch is a random order of the shards, cut into windows of a few shards; the rows of a window are shuffled into one
another. So reading stays local, and a position is found from its own window alone. Memory: by the shard, plus a window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch

from avpretrain import draws
from avpretrain.errors import UsageError
from avpretrain.schedules import Step


@dataclass(frozen=True, slots=True)
class Place:
    """Where in training a sample stands."""

    epoch: int
    position: int
    """In the order of its epoch, from 0."""


@dataclass(frozen=True)
class Order:
    """Order of the rows of a data set in each epoch of training.

    Args:
        shard_sizes: clips of each shard; the rows of a shard follow those of the shard before it.
        window: shards that are shuffled into one another.
    """

    shard_sizes: tuple[int, ...]
    window: int
    seed: int

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def place(self, seen: int) -> Place:
        """Where the sample stands before which `seen` samples were seen, over all epochs."""
        return Place(*divmod(seen, len(self)))

    def row(self, place: Place, skip: int = 0) -> int:
        """The row of the sample at `place`, or of its `skip`-th successor in the same window (which is a circle)."""
        starts = _window_starts(self, place.epoch)
        window = bisect_right(starts, place.position) - 1
        rows = _window_rows(self, place.epoch, window)
        return int(rows[(place.position - starts[window] + skip) % len(rows)])

    def sample_seed(self, place: Place) -> int:
        """Seed of everything that is drawn for the sample."""
        return draws.sample_seed(self.seed, place.epoch, place.position)


def _permutation(seed: int, stream: str, count: int) -> np.ndarray:
    # Sorted hashes rather than a library's shuffle, whose result may change with the library's version.
    return draws.permutation(torch.tensor([seed]), stream, count)[0].numpy()


@lru_cache(maxsize=4)
def _shard_order(order: Order, epoch: int) -> list[int]:
    sizes = np.asarray(order.shard_sizes)
    shards = _permutation(draws.sample_seed(order.seed, epoch, -1), "shards", len(sizes))
    return [int(shard) for shard in shards if sizes[shard]]


@lru_cache(maxsize=4)
def _window_starts(order: Order, epoch: int) -> list[int]:
    """First position of each window."""
    shards = _shard_order(order, epoch)
    windows = [shards[i : i + order.window] for i in range(0, len(shards), order.window)]
    sizes = [sum(order.shard_sizes[shard] for shard in window) for window in windows]
    return [0, *accumulate(sizes[:-1])]


@lru_cache(maxsize=2)
def _window_rows(order: Order, epoch: int, window: int) -> np.ndarray:
    """Rows of one window, int64, in the order in which they are read."""
    shards = _shard_order(order, epoch)[window * order.window : (window + 1) * order.window]
    first_rows = _first_rows(order)
    rows = np.concatenate([np.arange(first_rows[s], first_rows[s] + order.shard_sizes[s]) for s in shards])
    return rows[_permutation(draws.sample_seed(order.seed, epoch, -2 - window), "rows", len(rows))]


@lru_cache(maxsize=4)
def _first_rows(order: Order) -> list[int]:
    return [0, *accumulate(order.shard_sizes[:-1])]


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
