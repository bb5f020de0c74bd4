"""Forward noising on top of diffusers' schedulers, and the targets that a denoiser is trained on.

B clips, N patches, P values a patch, T timesteps. Timesteps run from 0 (least noise) to T - 1.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from avpretrain.modelconfig import DiffusionConfig


def make_scheduler(cfg: DiffusionConfig, kind: Literal["ddpm", "ddim"] = "ddpm") -> Any:
    """diffusers' `DDPMScheduler` or `DDIMScheduler` of this process, with alphas_cumprod raised to `rho` (DiffMAE,
    section 3.3). Untyped, since diffusers hides its attributes from type checkers.
    """
    scheduler = DDPMScheduler if kind == "ddpm" else DDIMScheduler
    plain: Any = DDPMScheduler(cfg.num_train_timesteps, beta_schedule=cfg.beta_schedule)
    alphas_cumprod = plain.alphas_cumprod.double().numpy() ** cfg.rho
    betas = 1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])
    trained = betas.astype(np.float32) if cfg.rho != 1 else plain.betas.numpy()
    return scheduler(
        cfg.num_train_timesteps,
        trained_betas=trained,
        prediction_type=cfg.prediction_type,
        clip_sample=False,
        timestep_spacing="trailing",  # sampling starts at the last timestep, where pure noise belongs
        rescale_betas_zero_snr=cfg.zero_terminal_snr,
    )


class ForwardProcess(nn.Module):
    """Noises patches and turns a denoiser's output into what it should have been.

    The formulas are diffusers'; they stand here because its methods move tensors between devices inside the step, which
    stops compilation. A test holds the two together.
    """

    alphas_cumprod_T: Tensor

    def __init__(self, cfg: DiffusionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        with torch.device("cpu"):  # the scheduler calls numpy, also where the model around it has no memory (meta)
            scheduler = make_scheduler(cfg)
        self.register_buffer("alphas_cumprod_T", scheduler.alphas_cumprod.clone(), persistent=False)

    def add_noise(self, clean_BNP: Tensor, noise_BNP: Tensor, timestep_B: Tensor) -> Tensor:
        """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise (DDPM, equation 4)."""
        a_B11 = self.alphas_cumprod_T[timestep_B][:, None, None]
        return a_B11.sqrt() * clean_BNP + (1 - a_B11).sqrt() * noise_BNP

    def target(self, clean_BNP: Tensor, noise_BNP: Tensor, timestep_B: Tensor) -> Tensor:
        """What the denoiser predicts: the clean patch, the noise, or v (Salimans & Ho 2022)."""
        if self.cfg.prediction_type == "sample":
            return clean_BNP
        if self.cfg.prediction_type == "epsilon":
            return noise_BNP
        a_B11 = self.alphas_cumprod_T[timestep_B][:, None, None]
        return a_B11.sqrt() * noise_BNP - (1 - a_B11).sqrt() * clean_BNP

    def clean(self, output_BNP: Tensor, noisy_BNP: Tensor, timestep_B: Tensor) -> Tensor:
        """The clean patch that a denoiser's output implies."""
        if self.cfg.prediction_type == "sample":
            return output_BNP
        a_B11 = self.alphas_cumprod_T[timestep_B][:, None, None]
        if self.cfg.prediction_type == "epsilon":
            return (noisy_BNP - (1 - a_B11).sqrt() * output_BNP) / a_B11.sqrt()
        return a_B11.sqrt() * noisy_BNP - (1 - a_B11).sqrt() * output_BNP

    def loss_weight(self, timestep_B: Tensor, gamma: float = 5.0) -> Tensor:
        """[B] weights on squared errors: 1, or min-SNR-gamma for what is predicted (Hang et al. 2023, section 3.4)."""
        if self.cfg.loss_weighting == "uniform":
            return torch.ones_like(timestep_B, dtype=torch.float32)
        a_B = self.alphas_cumprod_T[timestep_B]
        snr_B = a_B / (1 - a_B)
        clipped_B = snr_B.clamp(max=gamma)
        divisor = {"sample": torch.ones_like(snr_B), "epsilon": snr_B, "v_prediction": snr_B + 1}
        return clipped_B / divisor[self.cfg.prediction_type]
