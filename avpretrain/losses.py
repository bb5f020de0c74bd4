"""Losses, as pure functions. B clips, G clips over all ranks, N hidden patches, P values a patch, D features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avpretrain.distributed import all_gather_with_grad


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
    logits_GG = first_GD @ second_GD.T / temperature
    target_G = torch.arange(len(logits_GG), device=logits_GG.device)
    if valid_B is None:
        return (F.cross_entropy(logits_GG, target_G) + F.cross_entropy(logits_GG.T, target_G)) / 2
    valid_G = all_gather_with_grad(valid_B.float()) > 0
    # A large negative number, not -inf: a column without any valid entry would turn into NaN.
    logits_GG = logits_GG.masked_fill(~(valid_G[:, None] & valid_G[None, :]), -1e9)
    rows_G = F.cross_entropy(logits_GG, target_G, reduction="none")
    columns_G = F.cross_entropy(logits_GG.T, target_G, reduction="none")
    return ((rows_G + columns_G) / 2 * valid_G).sum() / valid_G.sum().clamp(min=1)


def patch_mse(prediction_BNP: Tensor, target_BNP: Tensor, weight_B: Tensor) -> Tensor:
    """Mean squared error over patches, weighted by clip (MAE, section 3; DiffMAE, section 3.2).

    The mean runs over the clips of all ranks by DDP's averaging of gradients; a clip without this modality has weight 0.
    """
    error_B = (prediction_BNP.float() - target_BNP.float()).square().mean(dim=(1, 2))
    return (error_B * weight_B).mean()


def normalise_patches(patches_BNP: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch with mean 0 and variance 1 over its own values (MAE's `norm_pix_loss`)."""
    mean_BN1 = patches_BNP.mean(dim=-1, keepdim=True)
    var_BN1 = patches_BNP.var(dim=-1, keepdim=True)
    return (patches_BNP - mean_BN1) / (var_BN1 + eps).sqrt()
