"""From a log-mel spectrogram back to sound: mel bins to a spectrum, then phases by Griffin-Lim. To hear, not to score.

F frames, M mel bins, K frequencies, S samples.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from avpretrain.config.model import InputConfig
from avpretrain.data.features import PREEMPHASIS, frame_length, frame_shift, mel_filters


def to_waveform(audio_FM: Tensor, input: InputConfig, iterations: int = 60) -> Tensor:
    """float32 [S] in [-1, 1], as long as F frames of 25 ms every 10 ms.

    Args:
        audio_FM: normalised log-mel, as the model sees it.
        input: whose mean and standard deviation undo the normalisation.
        iterations: of Griffin-Lim.
    """
    if input.audio_mean is None or input.audio_std is None:
        raise ValueError("the input's mean and standard deviation are not set")
    log_mel_FM = audio_FM.float().cpu() * (2 * input.audio_std) + input.audio_mean
    size = 1 << (frame_length(input.sample_rate) - 1).bit_length()
    filters_KM = mel_filters(input.mels, input.sample_rate, size)
    power_FK = spectrum(log_mel_FM.exp(), filters_KM)
    omega_K = torch.linspace(0, math.pi, size // 2 + 1)
    emphasis_K = (1 + PREEMPHASIS**2 - 2 * PREEMPHASIS * omega_K.cos()).sqrt()  # |1 - 0.97 exp(-i w)|
    wave_S = griffin_lim(power_FK.sqrt() / emphasis_K, input.sample_rate, iterations)
    half = frame_length(input.sample_rate) // 2  # Griffin-Lim's frames are centred on their time, Kaldi's begin there
    wave_S = F.pad(wave_S, (half, half))
    return wave_S / wave_S.abs().max().clamp(min=1.0)


def spectrum(mel_FM: Tensor, filters_KM: Tensor, iterations: int = 100) -> Tensor:
    """[F, K]: a non-negative power spectrum whose mel energies are close to `mel_FM`, by multiplicative updates (Lee &
    Seung 2001) from the mel energies spread over their triangles.
    """
    spread_MK = filters_KM.T / filters_KM.sum(dim=0)[:, None].clamp(min=1e-6)
    power_FK = mel_FM @ spread_MK + 1e-10
    for _ in range(iterations):
        power_FK = power_FK * (mel_FM @ filters_KM.T) / (power_FK @ filters_KM @ filters_KM.T + 1e-10)
    return power_FK


def griffin_lim(magnitude_FK: Tensor, sample_rate: int, iterations: int, momentum: float = 0.99) -> Tensor:
    """float32 [S] whose spectrogram has about these magnitudes (Perraudin et al. 2013, the fast variant)."""
    window = torch.hann_window(frame_length(sample_rate))
    size = 2 * (magnitude_FK.shape[1] - 1)
    hop, length = frame_shift(sample_rate), len(window)
    magnitude_KF = magnitude_FK.T
    phase_KF = 2 * math.pi * torch.rand(magnitude_KF.shape, generator=torch.Generator().manual_seed(0))
    angles_KF = torch.polar(torch.ones_like(phase_KF), phase_KF)
    previous_KF = torch.zeros_like(angles_KF)
    for _ in range(iterations):
        wave_S = torch.istft(magnitude_KF * angles_KF, size, hop, length, window)
        rebuilt_KF = torch.stft(wave_S, size, hop, length, window, return_complex=True)
        angles_KF = rebuilt_KF + momentum * (rebuilt_KF - previous_KF)
        angles_KF = angles_KF / angles_KF.abs().clamp(min=1e-16)
        previous_KF = rebuilt_KF
    return torch.istft(magnitude_KF * angles_KF, size, hop, length, window)
