"""Linear classifiers on fixed features: multinomial logistic regression, or one binary one a class.

N clips, D features, C classes. Solved to convergence by L-BFGS in float64 on the device of the features; the problem is
convex, so the answer depends on no seed, no order and no learning rate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

SMALL = 20_000_000
"""Multiplications of one product, clips times features times classes, below which it runs on one thread of the CPU."""


@dataclass(frozen=True)
class LinearClassifier:
    """Logits of standardised features."""

    mean_D: Tensor
    scale_D: Tensor
    weight_DC: Tensor
    bias_C: Tensor

    def logits(self, x_ND: Tensor) -> NDArray[np.float64]:
        """[N, C]."""
        z_ND = (x_ND.to(self.mean_D) - self.mean_D) / self.scale_D
        return (z_ND @ self.weight_DC + self.bias_C).cpu().numpy()


def _loss(logits_NC: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over clips of cross-entropy, or of the sum of binary ones over classes; and its gradient by logits."""
    count = len(target)
    if target.dim() == 1:
        log_NC = F.log_softmax(logits_NC, dim=1)
        residual_NC = log_NC.exp()
        residual_NC[torch.arange(count, device=target.device), target] -= 1
        return F.nll_loss(log_NC, target), residual_NC / count
    loss = F.binary_cross_entropy_with_logits(logits_NC, target, reduction="sum") / count
    return loss, (logits_NC.sigmoid() - target) / count


@torch.no_grad()
def _minimise(z_ND: Tensor, target: Tensor, classes: int, l2: float, start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flat weights [(D + 1) * C], bias last, that minimise loss + l2 / 2 * |weights|^2."""
    width = z_ND.shape[1]

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w_EC = torch.from_numpy(flat).to(z_ND.device).view(width + 1, classes)
        loss, residual_NC = _loss(torch.addmm(w_EC[-1], z_ND, w_EC[:-1]), target)
        grad_EC = torch.cat([z_ND.T @ residual_NC + l2 * w_EC[:-1], residual_NC.sum(dim=0, keepdim=True)])
        return (loss + l2 / 2 * w_EC[:-1].square().sum()).item(), grad_EC.flatten().cpu().numpy()

    # gtol is far below what moves a prediction; ftol 0 would chase rounding errors.
    options = {"maxiter": 1000, "maxfun": 2000, "gtol": 1e-6, "ftol": 1e-12, "maxcor": 20}
    weights: NDArray[np.float64] = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    return weights


@contextlib.contextmanager
def _few_threads(work: int) -> Iterator[None]:
    """One thread for thousands of small products: waiting for a second would cost more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if work < SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit_path(x_ND: Tensor, target: Tensor, classes: int, l2s: Sequence[float]) -> list[LinearClassifier]:
    """One classifier for each regulariser, on features standardised by their own mean and deviation.

    Args:
        target: int64 [N] class indices, or [N, C] zeros and ones where a clip may have several.
        l2s: weights of the squared norm beside the mean loss; from large to small is fastest: each starts at the last.
    """
    if x_ND.numel() * classes < SMALL:  # a GPU waits for its launches, and for whoever shares it
        x_ND, target = x_ND.cpu(), target.cpu()
    x_ND = x_ND.double()
    mean_D, scale_D = x_ND.mean(dim=0), x_ND.std(dim=0, correction=0)
    scale_D = torch.where(scale_D > 1e-9 * mean_D.abs() + 1e-12, scale_D, 1.0)  # a constant feature tells nothing
    z_ND = (x_ND - mean_D) / scale_D
    target = target.to(z_ND.device) if target.dim() == 1 else target.to(z_ND)
    flat = np.zeros((x_ND.shape[1] + 1) * classes)
    fitted = []
    for l2 in l2s:
        with _few_threads(z_ND.numel() * classes):
            flat = _minimise(z_ND, target, classes, l2, flat)
        w_EC = torch.from_numpy(flat).to(z_ND.device).view(-1, classes)
        fitted.append(LinearClassifier(mean_D, scale_D, w_EC[:-1].clone(), w_EC[-1].clone()))
    return fitted
