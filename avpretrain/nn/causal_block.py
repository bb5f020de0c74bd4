"""The block of a decoder-only language model: grouped queries, q/k norm, rotary positions, a gated MLP, no biases.

B samples, L tokens, D width, N query heads, G key and value heads, H head width.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avpretrain.nn.attend import attend
from avpretrain.nn.gated_mlp import GatedMlp
from avpretrain.nn.kv_cache import KVCache
from avpretrain.nn.rms_norm import RMSNorm
from avpretrain.nn.rotary import rotate

Tables = tuple[Tensor, Tensor]


class GroupedAttention(nn.Module):
    """Causal self-attention in which several query heads share a key and value head (Ainslie et al. 2023).

    Queries and keys are normalised over the head width before they are turned by their positions. The heads' width may
    differ from `width / heads`.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads do not divide among {kv_heads} key and value heads")
        self.heads, self.kv_heads = heads, kv_heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(head_width), RMSNorm(head_width)
        self.proj = nn.Linear(heads * head_width, width, bias=False)

    def forward(
        self,
        x_BLD: Float[Tensor, "b l d"],
        tables: Tables,
        allowed: Bool[Tensor, "#b 1 l c"] | None = None,
        cache: KVCache | None = None,
        block: int = 0,
    ) -> Float[Tensor, "b l d"]:
        """See `CausalBlock.forward`."""
        heads = rearrange(self.qkv(x_BLD), "b l (n h) -> b n l h", n=self.heads + 2 * self.kv_heads)
        q_BNLH, k_BGLH, v_BGLH = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q_BNLH, k_BGLH = rotate(self.q_norm(q_BNLH), tables), rotate(self.k_norm(k_BGLH), tables)
        if cache is not None:
            k_BGLH, v_BGLH = cache.extend(block, k_BGLH, v_BGLH)
        causal = allowed is None and q_BNLH.shape[2] > 1  # a single new token sees all before it
        y_BNLH = attend(q_BNLH, k_BGLH, v_BGLH, allowed, causal)
        return self.proj(rearrange(y_BNLH, "b n l h -> b l (n h)"))


class CausalBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = GroupedAttention(width, heads, kv_heads, head_width)
        self.norm2 = RMSNorm(width)
        self.mlp = GatedMlp(width, hidden)

    def forward(
        self,
        x_BLD: Float[Tensor, "b l d"],
        tables: Tables,
        allowed: Bool[Tensor, "#b 1 l c"] | None = None,
        cache: KVCache | None = None,
        block: int = 0,
    ) -> Float[Tensor, "b l d"]:
        """Tokens, shape unchanged.

        Args:
            tables: cosines and sines of the tokens' positions, [L, H] each.
            allowed: which token (row) may see which (column, cached ones included); none = those up to itself, where
                L > 1 only with an empty cache.
            cache: takes the tokens' keys and values, and gives those before them.
            block: which of the cache's blocks this is.
        """
        x_BLD = x_BLD + self.attn(self.norm1(x_BLD), tables, allowed, cache, block)
        return x_BLD + self.mlp(self.norm2(x_BLD))
