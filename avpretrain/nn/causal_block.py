"""The block of a decoder-only language model: grouped queries, q/k norm, rotary positions, a gated MLP, no biases.

B samples, L tokens, D width, N query heads, G key and value heads, H head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avpretrain.nn.attend import attend
from avpretrain.nn.external_kv import ExternalKV, RecordedKV
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
        external: ExternalKV | None = None,
        record: list[RecordedKV] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """See `CausalBlock.forward`."""
        if external is None or external.append:
            heads = rearrange(self.qkv(x_BLD), "b l (n h) -> b n l h", n=self.heads + 2 * self.kv_heads)
            q_BNLH, raw_BGLH, v_BGCH = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            normed_BGLH = self.k_norm(raw_BGLH)
            k_BGCH = rotate(normed_BGLH, tables)
            if record is not None:
                record.append(RecordedKV(raw_BGLH, normed_BGLH, v_BGCH))
            if external is not None:
                before_BGCH = self.turned(external, tables)
                k_BGCH = torch.cat([before_BGCH, k_BGCH], dim=2)
                v_BGCH = torch.cat([external.values, v_BGCH], dim=2)
        else:
            q_BNLH = rearrange(F.linear(x_BLD, self.query_weight), "b l (n h) -> b n l h", n=self.heads)
            k_BGCH, v_BGCH = self.turned(external, tables, record), external.values
        q_BNLH = rotate(self.q_norm(q_BNLH), tables)
        if cache is not None:
            k_BGCH, v_BGCH = cache.extend(block, k_BGCH, v_BGCH)
        causal = allowed is None and q_BNLH.shape[2] > 1  # a single new token sees all before it
        y_BNLH = attend(q_BNLH, k_BGCH, v_BGCH, allowed, causal)
        return self.proj(rearrange(y_BNLH, "b n l h -> b l (n h)"))

    def keys_values(self, x_BLD: Float[Tensor, "b l d"]) -> tuple[Tensor, Tensor]:
        """Keys before their norm, and values, of normalised tokens, [B, G, L, H] each; no queries, no attention."""
        heads = rearrange(
            F.linear(x_BLD, self.qkv.weight[self.heads * self.q_norm.width :]),
            "b l (n h) -> b n l h",
            n=2 * self.kv_heads,
        )
        raw_BGLH, v_BGLH = heads.split(self.kv_heads, dim=1)
        return raw_BGLH, v_BGLH

    def turned(self, external: ExternalKV, tables: Tables, record: list[RecordedKV] | None = None) -> Tensor:
        """External keys, [B, G, C, H], with what they lack of this block's norm and of their positions' turn.

        Args:
            tables: of their positions, where they bring none themselves.
        """
        if external.stage == "rotated":
            return external.keys
        normed_BGCH = self.k_norm(external.keys) if external.stage == "raw" else external.keys
        if record is not None:
            record.append(RecordedKV(external.keys, normed_BGCH, external.values))
        return rotate(normed_BGCH, external.tables or tables)

    @property
    def query_weight(self) -> Tensor:
        """Rows of `qkv` that give the queries."""
        return self.qkv.weight[: self.heads * self.q_norm.width]


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
        external: ExternalKV | None = None,
        record: list[RecordedKV] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Tokens, shape unchanged.

        Args:
            tables: cosines and sines of the tokens' positions, [L, H] each.
            allowed: which token (row) may see which (column, cached ones included); none = those up to itself, where
                L > 1 only with an empty cache.
            cache: takes the tokens' keys and values, and gives those before them.
            block: which of the cache's blocks this is.
            external: keys and values that come from elsewhere, in place of the tokens' own or before them; with those
                before them and several tokens, `allowed` must say who sees whom.
            record: takes up the keys and values that were used, those of a replacing `external` included.
        """
        x_BLD = x_BLD + self.attn(self.norm1(x_BLD), tables, allowed, cache, block, external, record)
        return x_BLD + self.mlp(self.norm2(x_BLD))
