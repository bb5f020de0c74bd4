"""Masks: how many, which, and from whose seed."""

import pytest
import torch

from avpretrain.nn.masking import STRATEGIES, gather_patches, make_mask, random_part

GRIDS = {name: (4, 3, 3) if name == "tube" else (8, 4) for name in STRATEGIES}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.8, 0.99])
def test_every_clip_hides_the_same_number_and_each_patch_is_somewhere(strategy: str, ratio: float) -> None:
    grid = GRIDS[strategy]
    length = int(torch.tensor(grid).prod())
    mask = make_mask(strategy, torch.arange(5), "a", grid, ratio)
    assert mask.ids_keep_BK.shape[1] == min(max(round(length * (1 - ratio)), 1), length - 1)
    both = torch.cat([mask.ids_keep_BK, mask.ids_hidden_BN], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(length).expand(5, -1))
    assert torch.equal(mask.mask_BL.sum(dim=1), torch.full((5,), float(mask.ids_hidden_BN.shape[1])))
    x_BLD = torch.randn(5, length, 2)
    shuffled = gather_patches(x_BLD, both)
    assert torch.equal(gather_patches(shuffled, mask.ids_restore_BL), x_BLD)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_mask_is_a_function_of_the_clips_seed_alone(strategy: str) -> None:
    grid = GRIDS[strategy]
    together = make_mask(strategy, torch.tensor([5, 6, 7]), "a", grid, 0.5).mask_BL
    alone = make_mask(strategy, torch.tensor([6]), "a", grid, 0.5).mask_BL
    assert torch.equal(together[1:2], alone)
    many = make_mask(strategy, torch.arange(64), "a", grid, 0.5).mask_BL
    assert len(many.unique(dim=0)) > 1
    assert not torch.equal(many, make_mask(strategy, torch.arange(64), "b", grid, 0.5).mask_BL)


def test_random_masks_hide_every_patch_equally_often() -> None:
    mask = make_mask("random", torch.arange(4000), "a", (4, 4), 0.75).mask_BL
    torch.testing.assert_close(mask.mean(dim=0), torch.full((16,), 0.75), atol=0.03, rtol=0)


def test_tubes_are_the_same_at_all_times() -> None:
    mask_BTP = make_mask("tube", torch.arange(50), "a", (4, 5, 5), 0.8).mask_BL.reshape(50, 4, 25)
    assert (mask_BTP == mask_BTP[:, :1]).all()


@pytest.mark.parametrize(("strategy", "axis"), [("time", 2), ("frequency", 1)])
def test_structured_masks_hide_whole_columns_and_rows(strategy: str, axis: int) -> None:
    mask_BTF = make_mask(strategy, torch.arange(50), "a", (8, 8), 0.75).mask_BL.reshape(50, 8, 8)
    share = mask_BTF.mean(dim=axis)
    assert ((share == 0) | (share == 1)).all()


def test_a_ratio_between_groups_cuts_into_one_group_only() -> None:
    mask_BTF = make_mask("time", torch.arange(50), "a", (8, 8), 0.7).mask_BL.reshape(50, 8, 8)
    partly = (mask_BTF.mean(dim=2) % 1 != 0).sum(dim=1)
    assert (partly == 1).all()


def test_time_frequency_leaves_a_product_of_times_and_frequencies() -> None:
    """What stays visible is almost a set of times crossed with a set of frequencies: few rows differ."""
    kept_BTF = 1 - make_mask("time_frequency", torch.arange(50), "a", (8, 8), 0.75).mask_BL.reshape(50, 8, 8)
    rows = [len({tuple(row.tolist()) for row in clip if row.any()}) for clip in kept_BTF]
    assert max(rows) <= 2


def test_random_part() -> None:
    ids_BN = make_mask("random", torch.arange(3), "a", (8, 4), 0.75).ids_hidden_BN
    part = random_part(ids_BN, 0.25, torch.arange(3), "b")
    assert part.shape == (3, 6)
    assert all(
        set(p.tolist()) < set(i.tolist()) and len(set(p.tolist())) == 6 for p, i in zip(part, ids_BN, strict=True)
    )
    assert random_part(ids_BN, 1.0, torch.arange(3), "b") is ids_BN
