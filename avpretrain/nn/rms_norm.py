"""Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 whatever the precision of x."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return F.rms_norm(x.float(), (self.width,), self.weight.float(), self.eps).to(x.dtype)
