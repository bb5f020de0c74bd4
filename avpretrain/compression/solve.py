"""One layer made small alone: weights on a grid or masked, and its bias, so that its output changes least.

With moments of the input the error is exact: for a change D of the weights and d of the bias, by output channel,
E = D C D' + (D m + d)^2. The best bias is d = -D m. If C is diagonal, rounding to nearest is the best
rounding on a grid.

G groups, P output channels of a group, O = G P, I inputs of one output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from avpretrain.compression.inputs import InputMoments
from avpretrain.compression.quantiser import IDENTITY_BITS, QuantGrid, min_max_grid
from avpretrain.core.errors import UsageError

Solver = Literal["naive", "closed", "ste"]
SHRINKS = tuple(1 - 0.025 * i for i in range(29))
"""Parts of the range that are tried for a grid: 1 to 0.3."""


@dataclass(frozen=True)
class Solution:
    """A layer made small.

    Args:
        weight: float32, of the old shape.
        bias: [O].
        error: of its output, mean square over channels, by the input's moments; NaN where they are not known.
        grid: what the weights lie on, if on any.
    """

    weight: Tensor
    bias: Tensor
    error: float
    grid: QuantGrid | None = None


def output_error(change: Tensor, inputs: InputMoments, bias_change_O: Tensor | None = None) -> Tensor:
    """[O], mean square change of each output channel.

    Args:
        change: change of the weight, [O, ...].
        bias_change_O: none = the best bias is taken.
    """
    change_GPI = change.flatten(1).unflatten(0, (len(inputs.mean_GI), -1))
    error_O = torch.einsum("gpi,gij,gpj->gp", change_GPI, inputs.covariance_GII, change_GPI).flatten()
    if bias_change_O is None:
        return error_O
    return error_O + (mean_change(change, inputs) + bias_change_O).square()


def mean_change(change: Tensor, inputs: InputMoments) -> Tensor:
    """[O], by how much a change of the weight moves the mean of each output."""
    change_GPI = change.flatten(1).unflatten(0, (len(inputs.mean_GI), -1))
    return torch.einsum("gpi,gi->gp", change_GPI, inputs.mean_GI).flatten()


def best_grid(weight: Tensor, inputs: InputMoments, bits: int, per_channel: bool) -> QuantGrid:
    """Of grids with shrunk ranges, the one on which rounding to nearest changes the output least."""
    if bits >= IDENTITY_BITS:
        return min_max_grid(weight, bits, per_channel)
    errors = []
    for shrink in SHRINKS:
        change = min_max_grid(weight, bits, per_channel, shrink).quantise(weight) - weight
        errors.append(output_error(change, inputs))
    error_SO = torch.stack(errors)
    shrinks = torch.tensor(SHRINKS)
    if per_channel:
        return min_max_grid(weight, bits, True, shrinks[error_SO.argmin(dim=0)])
    return min_max_grid(weight, bits, False, float(shrinks[error_SO.sum(dim=1).argmin()]))


def quantise(
    weight: Tensor,
    bias: Tensor | None,
    inputs: InputMoments | None,
    bits: int,
    per_channel: bool,
    solver: Solver = "closed",
    steps: int = 300,
    grid: QuantGrid | None = None,
) -> Solution:
    """Weights on a grid of 2^bits values.

    Args:
        weight: [O, ...].
        inputs: none = not known: rounding to nearest on the grid from minimum to maximum, bias as it is.
        solver: `naive` is that; `closed` chooses the grid, rounds and corrects the bias; `ste` starts there and moves
            weights by Adam with straight-through gradients, which gains where inputs are correlated.
        steps: of `ste`.
        grid: none = chosen.
    """
    weight = weight.detach()
    old_bias = torch.zeros(len(weight)) if bias is None else bias.detach()
    if inputs is None or solver == "naive":
        grid = grid or min_max_grid(weight, bits, per_channel)
        new = grid.quantise(weight)
        zero = torch.zeros_like(old_bias)
        return Solution(new, old_bias, _total(new - weight, inputs, zero), grid)
    grid = grid or best_grid(weight, inputs, bits, per_channel)
    new = grid.quantise(weight)
    if solver == "ste" and bits < IDENTITY_BITS:
        new = _descend(weight, inputs, grid, steps)
    return Solution(new, old_bias - mean_change(new - weight, inputs), _total(new - weight, inputs), grid)


def _total(change: Tensor, inputs: InputMoments | None, bias_change_O: Tensor | None = None) -> float:
    return float("nan") if inputs is None else float(output_error(change, inputs, bias_change_O).mean())


def _descend(weight: Tensor, inputs: InputMoments, grid: QuantGrid, steps: int) -> Tensor:
    """The best weights on the grid that Adam meets, by output channel, from rounding to nearest on."""
    free = weight.clone().requires_grad_()
    rate = float(grid.scale.mean()) * 0.03
    optimizer = torch.optim.Adam([free], lr=rate)
    best = grid.quantise(weight)
    best_O = output_error(best - weight, inputs)
    norm = best_O.mean().clamp(min=1e-20)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        quantised = grid.quantise(free)
        error_O = output_error(quantised - weight, inputs)
        better_O = error_O.detach() < best_O
        best_O = torch.where(better_O, error_O.detach(), best_O)
        best = torch.where(better_O.reshape(-1, *[1] * (weight.ndim - 1)), quantised.detach(), best)
        optimizer.zero_grad()
        (error_O.sum() / norm).backward()
        optimizer.step()
    return best


def check_sparsity(sparsity: float) -> None:
    """Raises: UsageError: it is not in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise UsageError(f"--sparsity takes a share of weights from 0 up to, not including, 1, got {sparsity}")


def prune(
    weight: Tensor,
    bias: Tensor | None,
    inputs: InputMoments | None,
    sparsity: float,
    score: Literal["magnitude", "scaled"] = "scaled",
    reoptimise: bool = True,
) -> Solution:
    """Zeroes a share of a layer's weights.

    Args:
        inputs: none = not known: by magnitude, bias as it is.
        sparsity: share of zeroes, in [0, 1).
        score: what the smallest of goes: |w|, or |w| times the input's standard deviation.
        reoptimise: the survivors of each output channel are solved by least squares.
    """
    check_sparsity(sparsity)
    weight = weight.detach()
    old_bias = torch.zeros(len(weight)) if bias is None else bias.detach()
    count = round(sparsity * weight.numel())
    scores = weight.abs().flatten(1)
    if inputs is not None and score == "scaled":
        groups = len(inputs.mean_GI)
        scores = (scores.unflatten(0, (groups, -1)) * inputs.std_GI[:, None]).flatten(0, 1)
    keep = torch.ones(weight.numel(), dtype=torch.bool)
    keep[scores.flatten().argsort(stable=True)[:count]] = False
    keep = keep.reshape(weight.shape)
    new = weight * keep
    if inputs is None:
        return Solution(new, old_bias, float("nan"))
    if reoptimise and count:
        new = _least_squares(weight, keep, inputs)
    return Solution(new, old_bias - mean_change(new - weight, inputs), _total(new - weight, inputs))


def _least_squares(weight: Tensor, keep: Tensor, inputs: InputMoments) -> Tensor:
    """Survivors by which each output channel changes least, given that the others are zero."""
    flat, mask = weight.flatten(1).double(), keep.flatten(1)
    per_group = len(weight) // len(inputs.mean_GI)
    new = torch.zeros_like(flat)
    for o in range(len(flat)):
        C = inputs.covariance_GII[o // per_group].double()
        kept = mask[o].nonzero()[:, 0]
        if not len(kept):
            continue
        gone = (~mask[o]).nonzero()[:, 0]
        A = C[kept][:, kept]
        A = A + torch.eye(len(kept), dtype=A.dtype) * (1e-3 * A.diagonal().mean() + 1e-12)  # samples are finite
        new[o, kept] = flat[o, kept] + torch.linalg.solve(A, C[kept][:, gone] @ flat[o, gone])
    return new.float().reshape(weight.shape)
