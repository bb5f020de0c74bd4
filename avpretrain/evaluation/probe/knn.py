"""Weighted nearest neighbours on frozen features (Wu et al. 2018, section 3.4).

N clips to classify, M clips to learn from, D features, C classes, K neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

TEMPERATURE = 0.07
_CHUNK = 1024


def fit(
    x_MD: Tensor, target: Tensor, classes: int, ks: Sequence[float]
) -> list[Callable[[Tensor], NDArray[np.float64]]]:
    """One classifier for each number of neighbours, at most all; features are centred before their angles are taken."""
    mean_D = x_MD.double().mean(dim=0)
    unit_MD = F.normalize(x_MD.double() - mean_D, dim=1)
    votes_MC = (F.one_hot(target, classes) if target.dim() == 1 else target).to(unit_MD)
    return [functools.partial(_scores, mean_D, unit_MD, votes_MC, min(int(k), len(x_MD))) for k in ks]


def _scores(mean_D: Tensor, unit_MD: Tensor, votes_MC: Tensor, k: int, x_ND: Tensor) -> NDArray[np.float64]:
    """[N, C]: votes of the k nearest by cosine, weighted by exp(cosine / temperature), summing to 1."""
    parts = []
    for chunk_ND in x_ND.double().split(_CHUNK):
        cosine_NM = F.normalize(chunk_ND - mean_D, dim=1) @ unit_MD.T
        near_NK, index_NK = cosine_NM.topk(k, dim=1)
        weight_NK = (near_NK / TEMPERATURE).softmax(dim=1)
        parts.append((weight_NK[:, :, None] * votes_MC[index_NK]).sum(dim=1))
    return torch.cat(parts).cpu().numpy()
