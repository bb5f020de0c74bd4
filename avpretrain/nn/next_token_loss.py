"""Cross-entropy over a large vocabulary, in stretches of tokens, so that the logits of all are never held at once.

Each stretch's gradients are computed together with its loss, so that nothing is computed twice. Stretches depend on
shapes alone: a CUDA graph can hold the step.

N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

LOGITS_AT_ONCE = 1 << 26
"""Logits that are held at a time: 256 MB in float32, and a few times that while gradients are computed."""


def next_token_loss(
    hidden_ND: Float[Tensor, "n d"],
    weight_VD: Float[Tensor, "v d"],
    target_N: Int[Tensor, " n"],
    z_weight: float = 0.0,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over tokens: what is minimised, the negative log-likelihood (nats), and the squared log normaliser.

    Args:
        hidden_ND: what the logits are a linear map of.
        weight_VD: that map.
        target_N: the tokens that come next.
        z_weight: weight of the squared log normaliser in what is minimised, the only one of the three with a gradient.
        logits_at_once: bounds the memory; more is never held, except for a single token.
    """
    tokens = max(1, logits_at_once // len(weight_VD))
    if len(hidden_ND) <= tokens or hidden_ND.is_meta:  # the meta device holds nothing anyway
        nll_N, squared_N = _losses(F.linear(hidden_ND, weight_VD), target_N)
        nll, squared = nll_N.mean(), squared_N.mean()
        return nll + z_weight * squared, nll.detach(), squared.detach()
    loss, nll, squared = _Stretches.apply(hidden_ND, weight_VD, target_N, z_weight, tokens)
    return loss, nll, squared


def _losses(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    logits_NV = logits_NV.float()
    normaliser_N = logits_NV.logsumexp(dim=-1)
    return normaliser_N - logits_NV.gather(-1, target_N[:, None])[:, 0], normaliser_N.square()


class _Stretches(torch.autograd.Function):
    """`next_token_loss`, so many tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, z_weight: float, tokens: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        count = len(hidden_ND)
        nll = squared = torch.zeros((), device=hidden_ND.device)
        hidden_grads, weight_grad_VD = [], None
        for x_CD, target_C in zip(hidden_ND.split(tokens), target_N.split(tokens), strict=True):
            logits_CV = F.linear(x_CD, weight_VD)
            kind, logits_CV = logits_CV.dtype, logits_CV.float()
            normaliser_C = logits_CV.logsumexp(dim=-1)
            nll = nll + (normaliser_C - logits_CV.gather(-1, target_C[:, None])[:, 0]).sum()
            squared = squared + normaliser_C.square().sum()
            if not (needs_hidden or needs_weight):
                continue
            # d/dlogits of each token's loss: softmax * (1 + 2 z normaliser), less 1 at the target. Means are taken
            # last, so that low precision holds numbers about 1.
            grad_CV = (logits_CV - normaliser_C[:, None]).exp_() * (1 + 2 * z_weight * normaliser_C)[:, None]
            grad_CV.scatter_add_(-1, target_C[:, None], grad_CV.new_full((len(target_C), 1), -1.0))
            grad_CV = grad_CV.to(kind)
            if needs_hidden:
                hidden_grads.append(grad_CV @ weight_VD.to(kind))
            if needs_weight:
                part_VD = (grad_CV.T @ x_CD.to(kind)).float()
                weight_grad_VD = part_VD if weight_grad_VD is None else weight_grad_VD.add_(part_VD)
        hidden_grad_ND = torch.cat(hidden_grads) if hidden_grads else None
        ctx.save_for_backward(
            None if hidden_grad_ND is None else (hidden_grad_ND / count).to(hidden_ND.dtype),
            None if weight_grad_VD is None else (weight_grad_VD / count).to(weight_VD.dtype),
        )
        nll, squared = nll / count, squared / count
        ctx.mark_non_differentiable(nll, squared)
        return nll + z_weight * squared, nll, squared

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_ND, weight_grad_VD = ctx.saved_tensors
        return (
            None if hidden_grad_ND is None else hidden_grad_ND * grads[0].to(hidden_grad_ND.dtype),
            None if weight_grad_VD is None else weight_grad_VD * grads[0].to(weight_grad_VD.dtype),
            None,
            None,
            None,
        )
