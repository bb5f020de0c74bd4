"""Scaled dot-product attention, the kernel chosen by what is asked for.

B samples, N query heads, G key and value heads, L queries, C keys, H head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["attend"]


def attend(
    q_BNLH: Float[Tensor, "b n l h"],
    k_BGCH: Float[Tensor, "b g c h"],
    v_BGCH: Float[Tensor, "b g c h"],
    allowed: Bool[Tensor, "#b 1 l c"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "b n l h"]:
    """Each query's mean of the values, scaled by 1 / sqrt(head width); N is a multiple of G, G shares each key head.

    Args:
        allowed: which query (row) may see which key (column); none = all.
        causal: query i sees keys 0 to i alone, without a mask in memory; needs L = C and no `allowed`.
    """
    share = q_BNLH.shape[1] // k_BGCH.shape[1]
    if share > 1:
        # Only the flash kernel on GPUs takes fewer key heads as they are, and it takes no mask.
        if q_BNLH.is_cuda and allowed is None:
            return F.scaled_dot_product_attention(q_BNLH, k_BGCH, v_BGCH, is_causal=causal, enable_gqa=True)
        k_BGCH, v_BGCH = k_BGCH.repeat_interleave(share, 1), v_BGCH.repeat_interleave(share, 1)
    return F.scaled_dot_product_attention(q_BNLH, k_BGCH, v_BGCH, allowed, is_causal=causal)
