"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 34), halves rotated against each other.

B samples, N heads, L tokens, H head width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rotary_tables(
    positions_L: Tensor, head_width: int, base: float = 10_000.0
) -> tuple[Float[Tensor, "l h"], Float[Tensor, "l h"]]:
    """float32 cosines and sines of each position's angles; pair i of a head turns by position * base^(-2 i / H)."""
    exponents = torch.arange(0, head_width, 2, device=positions_L.device, dtype=torch.float32) / head_width
    angles_LP = positions_L.float()[:, None] * (1.0 / base**exponents)
    angles_LH = torch.cat([angles_LP, angles_LP], dim=1)
    return angles_LH.cos(), angles_LH.sin()


def rotate(
    x_BNLH: Float[Tensor, "b n l h"], tables: tuple[Float[Tensor, "... l h"], Float[Tensor, "... l h"]]
) -> Float[Tensor, "b n l h"]:
    """Queries or keys turned by their positions, in float32; component i is paired with component i + H / 2.

    Args:
        tables: [L, H] each, or [B, 1, L, H] where samples have positions of their own.
    """
    cos_LH, sin_LH = tables
    first, second = x_BNLH.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x_BNLH.float() * cos_LH + turned * sin_LH).to(x_BNLH.dtype)
