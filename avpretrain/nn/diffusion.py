"""Forward noising, what a denoiser is given and trained on, and diffusers' schedulers of the same process for sampling.

B clips, N patches, P values a patch, T timesteps, X = 1 or N: timesteps are [B], one a clip, or [B, N], one a patch.
Timesteps run from 0 (least noise) to T - 1; with `mask_share` T itself is pure noise: nothing of a patch.
a stands for alphas_cumprod, SNR = a / (1 - a).
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from avpretrain.config.model import DiffusionConfig
from avpretrain.core import draws

__all__ = ["ForwardProcess", "make_betas", "make_scheduler"]

MIN_SNR_GAMMA = 5.0
"""Hang et al. 2023, section 3.4."""


def make_betas(cfg: DiffusionConfig, shift: float = 1.0) -> np.ndarray:
    """float32 [T]: variances of single steps, with alphas_cumprod raised to `rho` (DiffMAE, section 3.3), nothing left
    of a patch at the end if so configured (Lin et al. 2024, algorithm 1), and every SNR divided by `shift` squared.

    In NumPy, since importing diffusers costs each process seconds; a test holds the two equal.
    """
    steps = cfg.num_train_timesteps
    if cfg.beta_schedule == "linear":
        plain = torch.linspace(1e-4, 0.02, steps).numpy()
    else:  # Nichol & Dhariwal 2021, equation 17
        bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        plain = np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(bar)], dtype=np.float32)
    alphas_cumprod = torch.cumprod(1 - torch.from_numpy(plain), dim=0).double().numpy()
    if cfg.rho == 1 and not cfg.zero_terminal_snr and shift == 1:
        return plain
    alphas_cumprod = alphas_cumprod**cfg.rho
    if cfg.zero_terminal_snr:
        if steps == 1:
            alphas_cumprod = np.zeros(1)
        else:
            root = np.sqrt(alphas_cumprod)
            alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    alphas_cumprod = alphas_cumprod / (alphas_cumprod + shift**2 * (1 - alphas_cumprod))
    betas = 1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])
    return betas.astype(np.float32)


def make_scheduler(cfg: DiffusionConfig, kind: Literal["ddpm", "ddim"] = "ddpm", shift: float = 1.0) -> Any:
    """diffusers' `DDPMScheduler` or `DDIMScheduler` of this process, to be stepped with the clean patch that the
    denoiser sees (its prediction type is 'sample', whatever ours is). Untyped, since diffusers hides its attributes.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    scheduler = DDPMScheduler if kind == "ddpm" else DDIMScheduler
    return scheduler(
        cfg.num_train_timesteps,
        trained_betas=make_betas(cfg, shift),
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",  # sampling starts at the last timestep, where pure noise belongs
    )


class ForwardProcess(nn.Module):
    """Noises patches of one modality, scales them for the decoder, and says what its output should have been.

    The formulas of noising and velocity are diffusers'; they stand here because its methods move tensors between
    devices inside the step, which stops compilation. A test holds the two together.

    Args:
        shift: divides the SNR by its square (`audio_shift`, `video_shift`).
    """

    alphas_cumprod_T: Tensor

    def __init__(self, cfg: DiffusionConfig, shift: float = 1.0) -> None:
        super().__init__()
        self.cfg, self.shift = cfg, shift
        with torch.device("cpu"):  # the schedule is made with numpy, also where the model has no memory (meta)
            alphas_cumprod_T = torch.cumprod(1 - torch.from_numpy(make_betas(cfg, shift)), dim=0)
            if cfg.mask_share:
                alphas_cumprod_T = torch.cat([alphas_cumprod_T, torch.zeros(1)])
        self.register_buffer("alphas_cumprod_T", alphas_cumprod_T, persistent=False)

    @property
    def last(self) -> int:
        """The timestep of most noise that was trained."""
        return self.cfg.num_train_timesteps - (0 if self.cfg.mask_share else 1)

    def draw_timesteps(self, seed_B: Tensor, stream: str, patches: int) -> Tensor:
        """int64 [B], or [B, N] of `noise_level` 'patch': a pure function of the clips' seeds."""
        cfg = self.cfg
        shape = (patches,) if cfg.noise_level == "patch" else ()
        if cfg.timesteps == "uniform":
            timestep_BX = draws.integers(seed_B, f"{stream}_timestep", cfg.num_train_timesteps, shape)
        else:
            normal_BX = draws.normal(seed_B, f"{stream}_timestep", shape)
            share_BX = torch.sigmoid(cfg.logit_mean + cfg.logit_std * normal_BX)
            timestep_BX = (share_BX * cfg.num_train_timesteps).long().clamp(max=cfg.num_train_timesteps - 1)
        if not cfg.mask_share:
            return timestep_BX
        masked_BX = draws.uniform(seed_B, f"{stream}_masked", shape) < cfg.mask_share
        return torch.where(masked_BX, cfg.num_train_timesteps, timestep_BX)

    def _alpha(self, timestep_BX: Tensor) -> Tensor:
        """alphas_cumprod as [B, X, 1], to multiply patches."""
        return self.alphas_cumprod_T[timestep_BX].reshape(len(timestep_BX), -1, 1)

    def _spread(self, a_BX1: Tensor) -> Tensor:
        """Variance of x_t where clean patches have that of `sigma_data`."""
        return 1 - a_BX1 + a_BX1 * self.cfg.sigma_data**2

    def add_noise(self, clean_BNP: Tensor, noise_BNP: Tensor, timestep_BX: Tensor) -> Tensor:
        """x_t = sqrt(a) x_0 + sqrt(1 - a) noise (DDPM, equation 4)."""
        a_BX1 = self._alpha(timestep_BX)
        return a_BX1.sqrt() * clean_BNP + (1 - a_BX1).sqrt() * noise_BNP

    def scale_input(self, x_t_BNP: Tensor, timestep_BX: Tensor) -> Tensor:
        """x_t as it is embedded: times 1, sqrt(a), or EDM's c_in (Karras et al. 2022, table 1, of x_t / sqrt(a))."""
        if self.cfg.input_scale == "none":
            return x_t_BNP
        a_BX1 = self._alpha(timestep_BX)
        return x_t_BNP * (a_BX1.sqrt() if self.cfg.input_scale == "signal" else self._spread(a_BX1).rsqrt())

    def target(self, clean_BNP: Tensor, noise_BNP: Tensor, timestep_BX: Tensor) -> Tensor:
        """What the denoiser predicts: the clean patch, the noise, v (Salimans & Ho 2022), or EDM's F, for which

        c_skip = sigma_data^2 sqrt(a) / (1 - a + a sigma_data^2), c_out = sigma_data sqrt(1 - a) / sqrt(1 - a + a
        sigma_data^2): table 1 of Karras et al. 2022 with their x = x_t / sqrt(a) and sigma^2 = 1 / SNR. F at sigma_data
        1 is -v, and at a = 0 the clean patch.
        """
        kind, sigma = self.cfg.prediction_type, self.cfg.sigma_data
        if kind == "sample":
            return clean_BNP
        if kind == "epsilon":
            return noise_BNP
        a_BX1 = self._alpha(timestep_BX)
        if kind == "v_prediction":
            return a_BX1.sqrt() * noise_BNP - (1 - a_BX1).sqrt() * clean_BNP
        # (x_0 - c_skip x_t) / c_out with the small difference taken by hand
        difference_BNP = (1 - a_BX1).sqrt() * clean_BNP - sigma**2 * a_BX1.sqrt() * noise_BNP
        return difference_BNP / (sigma * self._spread(a_BX1).sqrt())

    def clean(self, output_BNP: Tensor, x_t_BNP: Tensor, timestep_BX: Tensor) -> Tensor:
        """The clean patch that a denoiser's output implies."""
        kind, sigma = self.cfg.prediction_type, self.cfg.sigma_data
        if kind == "sample":
            return output_BNP
        a_BX1 = self._alpha(timestep_BX)
        if kind == "epsilon":
            return (x_t_BNP - (1 - a_BX1).sqrt() * output_BNP) / a_BX1.sqrt()
        if kind == "v_prediction":
            return a_BX1.sqrt() * x_t_BNP - (1 - a_BX1).sqrt() * output_BNP
        spread_BX1 = self._spread(a_BX1)
        skipped_BNP = sigma**2 * a_BX1.sqrt() / spread_BX1 * x_t_BNP
        return skipped_BNP + sigma * ((1 - a_BX1) / spread_BX1).sqrt() * output_BNP

    def loss_weight(self, timestep_BX: Tensor) -> Tensor:
        """float32, as the timesteps: weights on squared errors of what is predicted.

        `loss_weighting` names weights on the error of the clean patch; an output's error is 1 / c_out as large, where
        the clean patch is a sum that holds c_out times the output.
        """
        kind = self.cfg.loss_weighting
        if kind == "uniform":
            return torch.ones_like(timestep_BX, dtype=torch.float32)
        a_BX, predicted = self.alphas_cumprod_T[timestep_BX], self.cfg.prediction_type
        if kind == "snr" and predicted == "epsilon":  # 0 / 0 at pure noise otherwise
            return torch.ones_like(a_BX)
        snr_BX = a_BX / (1 - a_BX)
        weight_BX = {
            "clean": torch.ones_like(a_BX),
            "noise": 1 - a_BX,
            "min_snr": snr_BX.clamp(max=MIN_SNR_GAMMA),
            "truncated_snr": snr_BX.clamp(min=1),
            "snr": snr_BX,
            "edm": self._spread(a_BX) / (1 - a_BX) / self.cfg.sigma_data**2,
        }[kind]
        return weight_BX / self.error_scale(timestep_BX)

    def error_scale(self, timestep_BX: Tensor) -> Tensor:
        """float32, as the timesteps: squared error of what is predicted over that of the clean patch, 1 / c_out^2."""
        a_BX, predicted = self.alphas_cumprod_T[timestep_BX], self.cfg.prediction_type
        snr_BX = a_BX / (1 - a_BX)
        if predicted == "sample":
            return torch.ones_like(a_BX)
        if predicted == "epsilon":
            return snr_BX
        return snr_BX + 1 if predicted == "v_prediction" else self._spread(a_BX) / (1 - a_BX) / self.cfg.sigma_data**2
