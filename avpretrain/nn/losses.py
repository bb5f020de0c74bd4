"""Losses, as pure functions. B clips, G clips over all ranks, N hidden patches, P values a patch, D features."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avpretrain.core.distributed import all_gather_with_grad

__all__ = ["PatchStats", "contrastive_loss", "normalise_patches", "patch_mse", "similarity"]


def contrastive_loss(first_BD: Tensor, second_BD: Tensor, temperature: float, valid_B: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE over the global batch (MAViL, section 3.2); gradients flow to every rank.

    Args:
        temperature: divides the cosine similarities.
        valid_B: bool; pairs that count. The others are neither anchors nor negatives.

    Returns:
        scalar, 0 where no pair is valid.
    """
    first_GD = all_gather_with_grad(F.normalize(first_BD.float(), dim=-1))
    second_GD = all_gather_with_grad(F.normalize(second_BD.float(), dim=-1))
    logits_GG = similarity(first_GD, second_GD, temperature)
    target_G = torch.arange(len(logits_GG), device=logits_GG.device)
    if valid_B is None:
        return (F.cross_entropy(logits_GG, target_G) + F.cross_entropy(logits_GG.T, target_G)) / 2
    valid_G = all_gather_with_grad(valid_B.float()) > 0
    # A large negative number, not -inf: a column without any valid entry would turn into NaN.
    logits_GG = logits_GG.masked_fill(~(valid_G[:, None] & valid_G[None, :]), -1e9)
    rows_G = F.cross_entropy(logits_GG, target_G, reduction="none")
    columns_G = F.cross_entropy(logits_GG.T, target_G, reduction="none")
    return ((rows_G + columns_G) / 2 * valid_G).sum() / valid_G.sum().clamp(min=1)


def patch_mse(prediction_BNP: Tensor, target_BNP: Tensor, weight_BX: Tensor, valid_B: Tensor | None = None) -> Tensor:
    """Mean squared error over patches, weighted by clip or by patch (MAE, section 3; DiffMAE, section 3.2).

    DDP averages gradients, so it is the mean over the clips of all ranks; one without this modality has weight 0.

    Args:
        weight_BX: [B], or [B, N] of patches.
        valid_B: bool; clips that count. The mean is over all.
    """
    axes = (1, 2) if weight_BX.ndim == 1 else (2,)
    error_BX = (prediction_BNP.float() - target_BNP.float()).square().mean(dim=axes)
    if valid_B is not None:
        weight_BX = weight_BX * valid_B.reshape(-1, *[1] * (weight_BX.ndim - 1))
    return (error_BX * weight_BX).mean()


def similarity(first_GD: Tensor, second_GD: Tensor, temperature: float) -> Tensor:
    """[G, G]: products of each with each, in float32: in bf16 they would be off by 1% of a logit and more."""
    device = first_GD.device.type
    counted = device == "meta"  # autocast knows no such device
    with contextlib.nullcontext() if counted else torch.autocast(device, enabled=False):
        return first_GD @ second_GD.T / temperature


@dataclass(frozen=True)
class PatchStats:
    """Mean and variance of each patch over its own values."""

    mean_BN1: Tensor
    var_BN1: Tensor

    @classmethod
    def of(cls, patches_BNP: Tensor) -> PatchStats:
        return cls(patches_BNP.mean(dim=-1, keepdim=True), patches_BNP.var(dim=-1, keepdim=True))

    def normalise(self, patches_BNP: Tensor, eps: float = 1e-6) -> Tensor:
        return (patches_BNP - self.mean_BN1) / (self.var_BN1 + eps).sqrt()

    def restore(self, normalised_BNP: Tensor, eps: float = 1e-6) -> Tensor:
        """The inverse of `normalise`."""
        return normalised_BNP * (self.var_BN1 + eps).sqrt() + self.mean_BN1


def normalise_patches(patches_BNP: Tensor) -> Tensor:
    """Each patch with mean 0 and variance 1 over its own values (MAE's `norm_pix_loss`)."""
    return PatchStats.of(patches_BNP).normalise(patches_BNP)
