"""Losses against naive loops, on one rank and on two."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from avpretrain.nn.losses import PatchStats, contrastive_loss, normalise_patches, patch_mse


def naive_info_nce(first: Tensor, second: Tensor, temperature: float, valid: list[bool]) -> Tensor:
    rows = [i for i, ok in enumerate(valid) if ok]
    losses = []
    for a, b in ((first, second), (second, first)):
        for i in rows:
            similarity = [torch.dot(a[i] / a[i].norm(), b[j] / b[j].norm()) / temperature for j in rows]
            positive = similarity[rows.index(i)]
            losses.append(-positive + torch.logsumexp(torch.stack(similarity), dim=0))
    return torch.stack(losses).mean() if losses else torch.zeros(())


def pair(clips: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(clips, 8, generator=generator, requires_grad=True) for _ in range(2))


@pytest.mark.parametrize("valid", [[True] * 6, [True, False, True, True, False, True], [False, True] + [False] * 4])
def test_info_nce_equals_a_naive_loop(valid: list[bool]) -> None:
    (a, b), (c, d) = pair(), pair()
    ours = contrastive_loss(a, b, 0.1, torch.tensor(valid))
    expected = naive_info_nce(c, d, 0.1, valid)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    ours.backward()
    expected.backward()
    torch.testing.assert_close(a.grad, c.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(b.grad, d.grad, atol=1e-6, rtol=1e-4)


def test_info_nce_without_validity_is_that_of_all() -> None:
    a, b = pair()
    torch.testing.assert_close(
        contrastive_loss(a, b, 0.1), contrastive_loss(a, b, 0.1, torch.ones(6, dtype=torch.bool))
    )


def test_info_nce_without_any_pair_is_zero_with_zero_gradients() -> None:
    a, b = pair()
    loss = contrastive_loss(a, b, 0.1, torch.zeros(6, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert not a.grad.any()


def test_info_nce_keeps_its_precision_under_autocast() -> None:
    a, b = pair(64)
    with torch.autocast("cpu", torch.bfloat16):
        half = contrastive_loss(a, b, 0.1)
    assert half == contrastive_loss(a, b, 0.1)


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    a, b = pair()
    mine = slice(3 * rank, 3 * rank + 3)
    valid = torch.tensor([True, True, False, True, True, True])
    own_a, own_b = a.detach()[mine].requires_grad_(), b.detach()[mine].requires_grad_()
    loss = contrastive_loss(own_a, own_b, 0.1, valid[mine])
    loss.backward()
    # DDP averages the gradients of the ranks; each row is owned by one rank alone.
    torch.save({"loss": loss.detach(), "a": own_a.grad / 2, "b": own_b.grad / 2}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_info_nce_over_two_ranks_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="spawn")
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    a, b = pair()
    whole = contrastive_loss(a, b, 0.1, torch.tensor([True, True, False, True, True, True]))
    whole.backward()
    for part in parts:
        torch.testing.assert_close(part["loss"], whole.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat([p["a"] for p in parts]), a.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.cat([p["b"] for p in parts]), b.grad, atol=1e-6, rtol=1e-5)


def test_patch_mse_by_hand() -> None:
    prediction, target = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    weight = torch.tensor([1.0, 0.0, 2.0])
    errors = [
        sum((p - t) ** 2 for p, t in zip(prediction[i].flatten(), target[i].flatten(), strict=True)) / 8 for i in (0, 2)
    ]
    torch.testing.assert_close(patch_mse(prediction, target, weight), (errors[0] + 2 * errors[1]) / 3)


def test_normalised_patches_are_maes() -> None:
    patches = 3 + 2 * torch.randn(2, 4, 50)
    expected = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6) ** 0.5
    torch.testing.assert_close(normalise_patches(patches), expected)
    torch.testing.assert_close(PatchStats.of(patches).restore(expected), patches)


def test_a_flat_patch_normalises_to_zero() -> None:
    flat = torch.full((1, 1, 9), math.pi)
    assert normalise_patches(flat).abs().max() < 1e-3
