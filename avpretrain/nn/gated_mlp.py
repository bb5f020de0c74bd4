"""The gated MLP of language models (SwiGLU; Shazeer 2020, arXiv 2002.05202, equation 6, without biases)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class GatedMlp(nn.Module):
    """fc2(silu(gate) * value), where fc1 gives gate and value at once: [gate | value]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        gate_BLF, value_BLF = self.fc1(x_BLD).chunk(2, dim=-1)
        return self.fc2(F.silu(gate_BLF) * value_BLF)
