"""Draws are random enough, and depend on sample, stream and place alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from avpretrain.core import draws

SEEDS = torch.tensor([draws.sample_seed(0, epoch, position) for epoch in range(2) for position in range(4)])


def test_values_are_pinned() -> None:
    # The exact integers: on any machine, in any version. A change here changes every run.
    assert [draws.sample_seed(0, 0, 0), draws.sample_seed(3, 1, 4)] == [2558736989570252433, -2848153566436544929]
    seeds = torch.tensor([1, -2])
    assert (draws.uniform(seeds, "a", (2,)) * 2**24).long().tolist() == [[5466407, 2911711], [1942642, 7344381]]
    assert draws.integers(seeds, "t", 1000).tolist() == [46, 925]


def test_a_sample_does_not_see_its_batch() -> None:
    together = draws.normal(SEEDS, "noise", (5, 3))
    alone = torch.cat([draws.normal(seed[None], "noise", (5, 3)) for seed in SEEDS])
    assert torch.equal(together, alone)


def test_a_longer_draw_begins_like_a_shorter_one() -> None:
    assert torch.equal(draws.uniform(SEEDS, "u", (100,))[:, :10], draws.uniform(SEEDS, "u", (10,)))


def test_uniform_is_uniform() -> None:
    values = draws.uniform(SEEDS, "u", (50_000,))
    assert float(values.min()) >= 0 and float(values.max()) < 1
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 0.001


def test_normal_is_normal() -> None:
    values = draws.normal(SEEDS, "n", (50_000,))
    assert torch.isfinite(values).all()
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 0.001


@pytest.mark.parametrize("other", ["stream", "sample", "place"])
def test_draws_that_differ_in_one_thing_are_uncorrelated(other: str) -> None:
    first = draws.normal(SEEDS, "a", (20_000,))
    second = {
        "stream": draws.normal(SEEDS, "b", (20_000,)),
        "sample": draws.normal(SEEDS.roll(1), "a", (20_000,)),
        "place": draws.normal(SEEDS, "a", (20_001,))[:, 1:],
    }[other]
    correlation = np.corrcoef(first.flatten().numpy(), second.flatten().numpy())[0, 1]
    assert abs(correlation) < 4 / first.numel() ** 0.5


def test_integers_cover_their_range_evenly() -> None:
    seeds = torch.tensor([draws.sample_seed(1, 0, i) for i in range(20_000)])
    counts = torch.bincount(draws.integers(seeds, "t", 10), minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 0.001
