from __future__ import annotations

from itertools import chain

import pytest
import torch

from avpretrain.config.schedules import Step
from avpretrain.core import draws
from avpretrain.core.errors import UsageError
from avpretrain.data.read.sampler import BatchPlaces, Order, Place, spread

SIZES = (5, 3, 0, 7, 4, 6)
GOLDEN = [18, 13, 11, 12, 15, 9, 16, 17, 14, 8, 10, 21, 5, 23, 20, 7, 24, 19, 6, 22, 4, 1, 2, 0, 3]


def order(seed: int = 0, window: int = 2) -> Order:
    return Order(SIZES, window, seed)


def epoch_rows(order: Order, epoch: int) -> list[int]:
    return [order.row(Place(epoch, position)) for position in range(len(order))]


def steps(*sizes: int) -> list[Step]:
    seen = [sum(sizes[:i]) for i in range(len(sizes))]
    return [Step(i, before, size, 1e-3) for i, (before, size) in enumerate(zip(seen, sizes, strict=True))]


def test_each_epoch_holds_each_row_once_in_another_order() -> None:
    epochs = [epoch_rows(order(), epoch) for epoch in range(3)]
    assert all(sorted(rows) == list(range(25)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
    assert epoch_rows(order(seed=1), 0) != epochs[0]


def test_order_never_changes_in_silence() -> None:
    assert epoch_rows(order(), 0) == GOLDEN


def test_a_window_of_shards_is_read_at_a_time() -> None:
    starts = [sum(SIZES[:i]) for i in range(len(SIZES))]
    shards = [max(s for s, start in enumerate(starts) if start <= row and SIZES[s]) for row in epoch_rows(order(), 0)]
    changes = [shard for i, shard in enumerate(shards) if shard not in shards[:i]]
    for window in (changes[0:2], changes[2:4], changes[4:6]):
        places = [i for i, shard in enumerate(shards) if shard in window]
        assert places == list(range(places[0], places[-1] + 1))
        assert len(window) == 1 or shards[places[0] : places[-1] + 1] != sorted(
            shards[places[0] : places[-1] + 1], key=window.index
        ), "rows of a window's shards should be mixed"


def test_ranks_together_make_the_same_batches() -> None:
    plan = steps(8, 4, 12, 16, 8)
    whole = list(BatchPlaces(order(), plan))
    assert list(chain(*whole)) == [order().place(seen) for seen in range(48)]
    for world in (2, 4):
        shares = [list(BatchPlaces(order(), plan, rank, world)) for rank in range(world)]
        for batch, *parts in zip(whole, *shares, strict=True):
            assert [place for group in zip(*parts, strict=True) for place in group] == batch


def test_resume_at_any_sample() -> None:
    whole = list(chain(*BatchPlaces(order(), steps(30, 30))))
    for seen in (0, 1, 24, 25, 26, 59):
        rest = BatchPlaces(order(), [Step(0, seen, 60 - seen, 1e-3)])
        assert list(chain(*rest)) == whole[seen:]


def test_successors_stay_in_the_window_and_differ() -> None:
    place = Place(0, 24)
    rows = [order().row(place, skip) for skip in range(6)]
    window = epoch_rows(order(), 0)[-len({order().row(place, skip) for skip in range(25)}) :]
    assert rows[0] == epoch_rows(order(), 0)[24]
    assert rows[1] == window[0], "the circle closes"
    assert len(set(rows)) == min(6, len(window))


def test_seeds_differ_by_epoch_and_position() -> None:
    seeds = {order().sample_seed(Place(epoch, position)) for epoch in range(4) for position in range(25)}
    assert len(seeds) == 100


def test_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match=r"6 clips does not divide among 4 ranks.*multiple of 4"):
        list(BatchPlaces(order(), steps(6), 0, 4))


def test_spread_keeps_all_rows() -> None:
    assert [list(part) for part in spread(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_single_draws_equal_batched_ones() -> None:
    seeds = [order().sample_seed(Place(epoch, position)) for epoch in range(3) for position in range(25)]
    for stream in ("audio_window", "video_window"):
        assert [draws.uniform_number(seed, stream) for seed in seeds] == draws.uniform(
            torch.tensor(seeds), stream
        ).tolist()
