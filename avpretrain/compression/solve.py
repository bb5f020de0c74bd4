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
from torch import Tensor, nn

from avpretrain.compression.inputs import InputMoments
from avpretrain.compression.quantiser import IDENTITY_BITS, QuantGrid, min_max_grid
from avpretrain.core.errors import UsageError

Solver = Literal["naive", "closed", "ste"]
Score = Literal["magnitude", "scaled", "surgeon", "best"]
SCORES: tuple[Score, ...] = ("magnitude", "scaled", "surgeon")
DAMPING = 1e-3
CONJUGATE_STEPS = 200
PRUNED_INPUTS = 16
"""A layer whose outputs have fewer inputs than this stays dense: depthwise kernels, a stem of one colour."""
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


def is_prunable(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether each output has enough inputs that others can make up for those taken away; depthwise layers have not."""
    return layer.weight[0].numel() >= PRUNED_INPUTS


def prune(
    weight: Tensor,
    bias: Tensor | None,
    inputs: InputMoments | None,
    sparsity: float,
    score: Score = "best",
    reoptimise: bool = True,
) -> Solution:
    """Zeroes a share of a layer's weights.

    Args:
        inputs: none = not known: by magnitude, bias as it is.
        sparsity: share of zeroes, in [0, 1).
        score: what the smallest of goes, over the whole layer, see `_scores`; `best` = whichever changes the output
            least, so that no other choice here is better by the input's moments.
        reoptimise: the survivors of each output channel are solved by least squares.
    """
    check_sparsity(sparsity)
    weight = weight.detach()
    old_bias = torch.zeros(len(weight)) if bias is None else bias.detach()
    count = round(sparsity * weight.numel())
    if inputs is None:
        return Solution(weight * _mask(weight.abs(), weight, count), old_bias, float("nan"))
    solutions = []
    for kind in SCORES if score == "best" else (score,):
        keep = _mask(_scores(weight, inputs, kind), weight, count)
        new = _least_squares(weight, keep, inputs) if reoptimise and count else weight * keep
        new_bias = old_bias - mean_change(new - weight, inputs)
        solutions.append(Solution(new, new_bias, _total(new - weight, inputs)))
    return min(solutions, key=lambda s: s.error)


def _scores(weight: Tensor, inputs: InputMoments, kind: Score) -> Tensor:
    """[O, ...], what each weight is worth.

    `magnitude` |w|; `scaled` |w| times its input's standard deviation: the root of the output's error without it, if
    inputs are independent; `surgeon` the root of that error once the others have made up for it (as in optimal brain
    surgeon).
    """
    if kind == "magnitude":
        return weight.abs()
    if kind == "scaled":
        factor_GI = inputs.std_GI
    else:
        damped_GII = inputs.covariance_GII.double() + torch.diag_embed(_damping(inputs))
        factor_GI = torch.linalg.inv(damped_GII).diagonal(dim1=1, dim2=2).rsqrt().float()
    flat_GPI = weight.abs().flatten(1).unflatten(0, (len(factor_GI), -1))
    return (flat_GPI * factor_GI[:, None]).reshape(weight.shape)


def _mask(score: Tensor, weight: Tensor, count: int) -> Tensor:
    """True for all but the `count` weights of the lowest score; among equals the smaller goes first."""
    order = weight.abs().flatten().argsort(stable=True)
    order = order[score.flatten()[order].argsort(stable=True)]
    keep = torch.ones(weight.numel(), dtype=torch.bool)
    keep[order[:count]] = False
    return keep.reshape(weight.shape)


def _damping(inputs: InputMoments) -> Tensor:
    """[G, I], added to the covariance's diagonal, for samples are finite: a thousandth of each input's own variance."""
    variance_GI = inputs.covariance_GII.diagonal(dim1=1, dim2=2).double().clamp(min=0)
    return DAMPING * variance_GI + 1e-6 * variance_GI.mean(dim=1, keepdim=True) + 1e-12


def _least_squares(weight: Tensor, keep: Tensor, inputs: InputMoments) -> Tensor:
    """Survivors by which each output channel changes least, given that the others are zero.

    Conjugate gradients from the survivors as they are, all channels at once, preconditioned by the diagonal: each step
    lowers the damped error, so that it ends no higher than where it began however few there are.
    """
    groups = len(inputs.mean_GI)
    keep_GPI = keep.flatten(1).unflatten(0, (groups, -1)).double()
    weight_GPI = weight.flatten(1).unflatten(0, (groups, -1)).double()
    damping_GI = _damping(inputs)
    damped_GII = inputs.covariance_GII.double() + torch.diag_embed(damping_GI)
    diagonal_GI = damped_GII.diagonal(dim1=1, dim2=2)
    moved_GPI = torch.zeros_like(weight_GPI)  # of the survivors
    left_GPI = (weight_GPI * (1 - keep_GPI)) @ inputs.covariance_GII.double() * keep_GPI  # minus half the gradient
    towards_GPI = left_GPI / diagonal_GI[:, None]
    power_GP1 = (left_GPI * towards_GPI).sum(dim=2, keepdim=True)
    enough_GP1 = power_GP1 * 1e-10
    for _ in range(min(weight_GPI.shape[2], CONJUGATE_STEPS)):
        if bool((power_GP1 <= enough_GP1).all()):
            break
        bent_GPI = (towards_GPI @ damped_GII) * keep_GPI
        step_GP1 = power_GP1 / (towards_GPI * bent_GPI).sum(dim=2, keepdim=True).clamp(min=1e-300)
        moved_GPI += step_GP1 * towards_GPI
        left_GPI -= step_GP1 * bent_GPI
        scaled_GPI = left_GPI / diagonal_GI[:, None]
        before_GP1, power_GP1 = power_GP1, (left_GPI * scaled_GPI).sum(dim=2, keepdim=True)
        towards_GPI = scaled_GPI + power_GP1 / before_GP1.clamp(min=1e-300) * towards_GPI
    return (weight_GPI * keep_GPI + moved_GPI).float().reshape(weight.shape)
