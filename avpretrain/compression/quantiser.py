"""Uniform asymmetric quantisation of weights: grids from minimum and maximum, per tensor or per output channel.

O output channels; the weight's other axes are free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avpretrain.core.errors import UsageError

IDENTITY_BITS = 32
"""At this many bits nothing is rounded."""


@dataclass(frozen=True)
class QuantGrid:
    """Points `(q - zero_point) * scale` with whole q from 0 to 2^bits - 1.

    Args:
        scale: float32, [] for a whole tensor or [O] by output channel.
        zero_point: int32, as `scale`.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int

    @property
    def last(self) -> int:
        """The largest q."""
        return 2**self.bits - 1

    def quantise(self, x: Tensor) -> Tensor:
        """The nearest point of the grid, as float32; the gradient is that of the identity inside of the range (STE)."""
        if self.bits >= IDENTITY_BITS:
            return x
        shape = (-1, *[1] * (x.ndim - 1)) if self.scale.ndim else ()
        scale, zero_point = self.scale.reshape(shape), self.zero_point.reshape(shape)
        raw = torch.round(x.detach() * (1 / scale)) + zero_point  # as torch does, which multiplies by the inverse
        point = (raw.clamp(0, self.last) - zero_point) * scale
        if not x.requires_grad:
            return point
        passed = torch.where((raw >= 0) & (raw <= self.last), x, x.detach())
        return passed + (point - passed).detach()


def check_bits(bits: int) -> None:
    """Raises: UsageError: `bits` is neither 2 to 16 nor 32."""
    if not (2 <= bits <= 16 or bits == IDENTITY_BITS):
        raise UsageError(f"--bits takes 2 to 16, or 32 to leave weights as they are, got {bits}")


def min_max_grid(x: Tensor, bits: int, per_channel: bool, shrink: Tensor | float = 1.0) -> QuantGrid:
    """The grid from the smallest to the largest value; 0 is always a point of it.

    Args:
        x: [O, ...].
        per_channel: one grid for each output channel, not one in all.
        shrink: part of the range that is kept, a number or [O]; values outside of it are clipped.
    """
    check_bits(bits)
    flat = x.detach().flatten(1) if per_channel else x.detach().reshape(1, -1)
    low, high = flat.amin(dim=1).clamp(max=0) * shrink, flat.amax(dim=1).clamp(min=0) * shrink
    last = 2**bits - 1
    scale = ((high - low) / last).clamp(min=torch.finfo(torch.float32).tiny * 2**24)
    zero_point = torch.round(-low / scale).clamp(0, last).to(torch.int32)
    if not per_channel:
        scale, zero_point = scale[0], zero_point[0]
    return QuantGrid(scale, zero_point, bits)
