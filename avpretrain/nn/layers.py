"""Transformer blocks in the ViT convention (pre-norm, keys named as in timm).

B clips, L tokens, C context tokens, D width, N heads, H head width. Attention is N H wide inside, which need not be D.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from avpretrain.config.scaling import LayerSizes
from avpretrain.nn.attend import attend

__all__ = ["Attention", "Block", "CrossAttention", "Mlp", "TimestepEmbedding", "init_weights", "make_stack"]

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention, scaled by 1 / sqrt(head width) (Vaswani et al. 2017, section 3.2).

    Args:
        head_width: none = the width divided by the heads.
    """

    def __init__(self, width: int, heads: int, head_width: int | None = None) -> None:
        super().__init__()
        self.heads, inner = heads, heads * (head_width or width // heads)
        self.qkv = nn.Linear(width, 3 * inner)
        self.proj = nn.Linear(inner, width)

    def forward(
        self, x_BLD: Float[Tensor, "b l d"], allowed_B1LL: Bool[Tensor, "b 1 l l"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """Args: allowed_B1LL: which token (row) may see which (column); none = all."""
        q_BNLH, k_BNLH, v_BNLH = rearrange(self.qkv(x_BLD), "b l (s n h) -> s b n l h", s=3, n=self.heads)
        y_BNLH = attend(q_BNLH, k_BNLH, v_BNLH, allowed_B1LL)
        return self.proj(rearrange(y_BNLH, "b n l h -> b l (n h)"))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context of the same width; see `Attention`."""

    def __init__(self, width: int, heads: int, head_width: int | None = None) -> None:
        super().__init__()
        self.heads, inner = heads, heads * (head_width or width // heads)
        self.q = nn.Linear(width, inner)
        self.kv = nn.Linear(width, 2 * inner)
        self.proj = nn.Linear(inner, width)

    def forward(self, x_BLD: Float[Tensor, "b l d"], context_BCD: Float[Tensor, "b c d"]) -> Float[Tensor, "b l d"]:
        q_BNLH = rearrange(self.q(x_BLD), "b l (n h) -> b n l h", n=self.heads)
        k_BNCH, v_BNCH = rearrange(self.kv(context_BCD), "b c (s n h) -> s b n c h", s=2, n=self.heads)
        y_BNLH = attend(q_BNLH, k_BNCH, v_BNCH)
        return self.proj(rearrange(y_BNLH, "b n l h -> b l (n h)"))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return self.fc2(F.gelu(self.fc1(x_BLD)))


class Block(nn.Module):
    """ViT block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        width: of the residual stream, the same in all blocks of a stack.
        hidden: width of the MLP's hidden layer.
        head_width: none = the width divided by the heads.
    """

    def __init__(self, width: int, heads: int, hidden: int, head_width: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads, head_width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        x_BLD = x_BLD + self.attn(self.norm1(x_BLD))
        return x_BLD + self.mlp(self.norm2(x_BLD))


def make_stack(width: int, layers: LayerSizes, head_width: int) -> nn.ModuleList:
    """Blocks of one residual width, each with its own number of heads and MLP width."""
    return nn.ModuleList(
        Block(width, heads, hidden, head_width) for heads, hidden in zip(layers.heads, layers.hidden, strict=True)
    )


class TimestepEmbedding(nn.Module):
    """Diffusion timestep to a vector: sinusoids, then two linear layers (DDPM, appendix B)."""

    frequencies: Tensor

    def __init__(self, width: int, sinusoids: int = 256) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sinusoids, width)
        self.fc2 = nn.Linear(width, width)
        half = sinusoids // 2
        with torch.device("cpu"):  # where the model has no memory (meta), torch would import its compiler for this
            frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, timestep_B: Int[Tensor, b * n]) -> Float[Tensor, "b *n d"]:
        angle_BF = timestep_B[..., None].float() * self.frequencies
        return self.fc2(F.silu(self.fc1(torch.cat([angle_BF.cos(), angle_BF.sin()], dim=-1))))


def init_weights(module: nn.Module) -> None:
    """MAE's initialisation, for `Module.apply`: Xavier-uniform linears, zero biases, unit norms."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
