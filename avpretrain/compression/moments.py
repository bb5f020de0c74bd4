"""Mean and variance of an activation's output under a Gaussian input, by channel.

Closed forms for ReLU and ReLU6; any other function by Gauss-Hermite quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

NODES = 64
"""Points of the quadrature."""


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def relu(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(0, x) for x of N(mean, std^2), of the arguments' shape. `std` may be 0."""
    std = std.double().clamp(min=1e-12)
    mean = mean.double()
    a = mean / std
    inside, density = torch.special.ndtr(a), _density(a)
    first = std * density + mean * inside
    second = (mean.square() + std.square()) * inside + mean * std * density
    return first.float(), (second - first.square()).clamp(min=0).float()


def relu6(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of min(6, max(0, x)) for x of N(mean, std^2)."""
    std = std.double().clamp(min=1e-12)
    mean = mean.double()
    low, high = -mean / std, (6 - mean) / std
    inside = torch.special.ndtr(high) - torch.special.ndtr(low)
    above = torch.special.ndtr(-high)
    slope = _density(low) - _density(high)
    first = mean * inside + std * slope + 6 * above
    edges = low * _density(low) - high * _density(high)
    second = (mean.square() + std.square()) * inside + 2 * mean * std * slope + std.square() * edges + 36 * above
    return first.float(), (second - first.square()).clamp(min=0).float()


def of_function(function: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of `function(x)` for x of N(mean, std^2), for a smooth function of single values."""
    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(NODES))
    weights = weights / weights.sum()
    values = function(mean.double()[..., None] + std.double()[..., None] * points)
    first = (values * weights).sum(dim=-1)
    return first.float(), ((values.square() * weights).sum(dim=-1) - first.square()).clamp(min=0).float()
