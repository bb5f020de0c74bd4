"""Keys and values that a causal block is given instead of making them, or that it made and others want.

B samples, G key and value heads, C tokens, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

KeyStage = Literal["raw", "normed", "rotated"]
"""What was done to keys: nothing yet, normalised over the head width, and turned by their positions, too."""


class RecordedKV(NamedTuple):
    """Keys and values of one block, before positions, [B, G, C, H] each."""

    raw: Tensor
    """Keys before the block's norm."""
    normed: Tensor
    """Keys after it."""
    values: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ExternalKV:
    """Keys and values for one block, [B, G, C, H] each."""

    keys: Tensor
    values: Tensor
    stage: KeyStage = "raw"
    """The block does what is missing, with its own norm."""
    append: bool = False
    """The block appends the keys and values of its tokens to these; else these replace them."""
    tables: tuple[Tensor, Tensor] | None = None
    """Cosines and sines of these tokens' positions, [C, H] each; none = those of the block's own tokens."""
