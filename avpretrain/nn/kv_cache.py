"""Keys and values of tokens that a causal stack has seen, so that each token is computed once.

B samples, G key and value heads, C tokens, H head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Room for the keys and values of `capacity` tokens in every block of a stack, whose heads may differ.

    Args:
        heads: key and value heads of each block.
    """

    def __init__(
        self,
        heads: Sequence[int],
        head_width: int,
        capacity: int,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.capacity, self.length = capacity, 0
        self._kv = [
            torch.empty(2, batch_size, count, capacity, head_width, device=device, dtype=dtype) for count in heads
        ]

    @property
    def bytes(self) -> int:
        """Memory of all blocks."""
        return sum(kv.numel() * kv.element_size() for kv in self._kv)

    def extend(self, block: int, k_BGLH: Tensor, v_BGLH: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the keys and values of the next tokens and returns those of all tokens so far, [B, G, C, H] each.

        `advance` is called once all blocks have done so.

        Raises:
            ValueError: there is no room.
        """
        end = self.length + k_BGLH.shape[2]
        if end > self.capacity:
            raise ValueError(f"a cache for {self.capacity} tokens can't hold {end}")
        kv = self._kv[block]
        kv[0, :, :, self.length : end] = k_BGLH
        kv[1, :, :, self.length : end] = v_BGLH
        return kv[0, :, :, :end], kv[1, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Counts tokens that every block has written."""
        self.length += tokens

    def cut(self, length: int) -> None:
        """Forgets all tokens but the first `length`."""
        self.length = min(self.length, length)
