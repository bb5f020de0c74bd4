"""The loss of the next token in stretches: equal to the plain one, in less memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from avpretrain.methods.openelm.model import LanguageModel
from avpretrain.nn.next_token_loss import LOGITS_AT_ONCE, next_token_loss
from tests.methods.openelm.test_model import TINY


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, 8, generator=draw, requires_grad=True) for n in (23, 40))
    return hidden, weight, torch.randint(40, (23,), generator=draw)


@pytest.mark.parametrize("logits_at_once", [1, 40 * 5, 40 * 22])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_stretches_give_the_loss_and_the_gradients_of_the_whole(logits_at_once: int, z_weight: float) -> None:
    hidden, weight, target = inputs()
    logits = F.linear(hidden, weight).double()
    nll, squared = F.cross_entropy(logits, target), logits.exp().sum(-1).log().square().mean()
    expected = torch.autograd.grad(3 * (nll + z_weight * squared), (hidden, weight))
    loss, found_nll, found_squared = next_token_loss(hidden, weight, target, z_weight, logits_at_once)
    assert not found_nll.requires_grad and not found_squared.requires_grad
    torch.testing.assert_close(found_nll.double(), nll.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_squared.double(), squared.detach(), rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(3 * loss, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_of_weights_that_are_fixed_no_gradient_is_made() -> None:
    hidden, weight, target = inputs()
    loss, *_ = next_token_loss(hidden, weight.detach(), target, 0.0, 100)
    whole, *_ = next_token_loss(hidden, weight.detach(), target)
    for a, b in zip(torch.autograd.grad(loss, hidden), torch.autograd.grad(whole, hidden), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert not next_token_loss(hidden, weight, target, 0.0, 100)[0].requires_grad


def test_in_low_precision_it_is_as_good_as_the_whole() -> None:
    """Gradients against those in float64: rounding of the products is all that may differ."""
    hidden, weight, target = inputs()
    exact = torch.autograd.grad(F.cross_entropy(F.linear(hidden, weight).double(), target), (hidden, weight))
    errors = []
    for logits_at_once in (40 * 23, 40 * 5):
        with torch.autocast("cpu", torch.bfloat16):
            loss, *_ = next_token_loss(hidden, weight, target, 0.0, logits_at_once)
        grads = torch.autograd.grad(loss, (hidden, weight))
        assert [grad.dtype for grad in grads] == [torch.float32] * 2
        errors.append([((a - b).norm() / b.norm()).item() for a, b in zip(grads, exact, strict=True)])
    for whole, stretches in zip(*errors, strict=True):
        assert stretches < 1.5 * whole < 0.05


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, list | tuple) else [found]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


def step(model: LanguageModel, tokens: Tensor) -> tuple[dict[str, Tensor], int]:
    with Largest() as largest:
        losses = model(tokens)
        losses["loss"].backward()
    return losses, largest.elements


def test_a_model_never_holds_the_logits_of_all_tokens() -> None:
    shape = dataclasses.replace(TINY, vocabulary=4000)
    tokens = torch.randint(4000, (40, 17), generator=torch.Generator().manual_seed(5))
    found = []
    for logits_at_once in (LOGITS_AT_ONCE, 4000 * 64):
        torch.manual_seed(0)
        model = LanguageModel(shape, z_loss=0.1)
        model.logits_at_once = logits_at_once
        with Largest() as largest:
            losses = model(tokens)
            losses["loss"].backward()
        found.append((losses, {name: p.grad for name, p in model.named_parameters()}, largest.elements))
    (losses, grads, most), (in_parts, grads_in_parts, fewest) = found
    assert most == 40 * 16 * 4000 and fewest < most / 4
    torch.testing.assert_close(in_parts, losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads_in_parts, grads, rtol=1e-5, atol=1e-6)


def test_logits_are_held_in_stretches() -> None:
    hidden, weight, target = (x.detach() for x in inputs())
    hidden = hidden.repeat(10, 1).requires_grad_()
    with Largest() as largest:
        loss, *_ = next_token_loss(hidden, weight.requires_grad_(), target.repeat(10), 0.1, 40 * 50)
        loss.backward()
    assert largest.elements == 40 * 50 < 230 * 40
