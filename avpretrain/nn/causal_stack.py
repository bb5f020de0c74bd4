"""A stack of causal blocks between tied embeddings: tokens to logits of the next.

B samples, L tokens, C tokens with those before, D width, V vocabulary, H head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from avpretrain.nn.causal_block import CausalBlock
from avpretrain.nn.rms_norm import RMSNorm
from avpretrain.nn.rotary import rotary_tables


class CausalStack(nn.Module):
    """Blocks that may all differ in heads and hidden width; input and output embeddings are one matrix.

    Args:
        heads: query heads of each block.
        kv_heads: key and value heads of each block.
        hidden_widths: of each block's MLP.
        separator: token that begins each document, where tokens see those of their own document alone; none = all
            before them.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        head_width: int,
        heads: Sequence[int],
        kv_heads: Sequence[int],
        hidden_widths: Sequence[int],
        rope_base: float = 10_000.0,
        separator: int | None = None,
    ) -> None:
        super().__init__()
        self.head_width, self.rope_base, self.separator = head_width, rope_base, separator
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            CausalBlock(width, queries, keys, head_width, hidden)
            for queries, keys, hidden in zip(heads, kv_heads, hidden_widths, strict=True)
        )
        self.norm = RMSNorm(width)

    def logits(
        self, tokens_BL: Int[Tensor, "b l"], cache: Any = None, real_BC: Bool[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b l v"]:
        """Logits of the token after each.

        Args:
            cache: holds the tokens before these, and takes these up (see `KVCache`).
            real_BC: which tokens, those before included, are no padding; none = all.
        """
        return self.head(self.hidden(tokens_BL, cache, real_BC))

    def head(self, x_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "b l v"]:
        """Logits from what `hidden` gives."""
        return F.linear(x_BLD, self.embed.weight)

    def hidden(
        self,
        tokens_BL: Int[Tensor, "b l"],
        cache: Any = None,
        real_BC: Bool[Tensor, "b c"] | None = None,
        external: Any = None,
        record: Any = None,
    ) -> Float[Tensor, "b l d"]:
        """Tokens after the last block and its norm.

        Args:
            cache: as of `logits`, as is `real_BC`.
            external: for each block, keys and values that replace the tokens' own (see `ExternalKV`).
            record: list that takes up the keys and values of each block (`RecordedKV`).
        """
        start, count = 0 if cache is None else cache.length, tokens_BL.shape[1]
        positions_L = torch.arange(start, start + count, device=tokens_BL.device)
        tables = rotary_tables(positions_L, self.head_width, self.rope_base)
        allowed = self.allowed(tokens_BL, start, real_BC)
        x_BLD = self.embed(tokens_BL)
        for i, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, tables, allowed, cache, i, external[i] if external else None, record)
        if cache is not None:
            cache.advance(count)
        return self.norm(x_BLD)

    def allowed(self, tokens_BL: Tensor, start: int, real_BC: Tensor | None = None) -> Tensor | None:
        """Which token sees which, where plain causality does not say it."""
        count, device = tokens_BL.shape[1], tokens_BL.device
        if real_BC is not None or (start and count > 1):
            rows_L1 = torch.arange(start, start + count, device=device)[:, None]
            columns_C = torch.arange(start + count, device=device)
            causal_BLC = (columns_C <= rows_L1)[None]
            if real_BC is not None:  # padding sees itself: a token that sees nothing has no mean to take
                causal_BLC = causal_BLC & real_BC[:, None] | (columns_C == rows_L1)
            return causal_BLC[:, None]
        if self.separator is None or start:
            return None
        document_BL = (tokens_BL == self.separator).cumsum(dim=1)
        same_BLL = document_BL[:, :, None] == document_BL[:, None, :]
        return same_BLL.tril()[:, None]
