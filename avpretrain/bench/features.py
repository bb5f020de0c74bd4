"""How fast waveforms become log-mel spectrograms, compared with torchaudio's function on the same device."""

from __future__ import annotations

from typing import Any

import torch
import torchaudio
from torch import Tensor

from avpretrain.bench.step import median_seconds
from avpretrain.config.model import InputConfig
from avpretrain.core.draws import normal
from avpretrain.data.features import log_mel
from avpretrain.data.read.clips import window_samples


def torchaudio_log_mel(waveform_BS: Tensor, cfg: InputConfig) -> Tensor:
    """[B, F, M] as the field computes it: clip by clip."""
    fbank = torchaudio.compliance.kaldi.fbank
    return torch.stack(
        [
            fbank(
                waveform_S[None],
                htk_compat=True,
                sample_frequency=cfg.sample_rate,
                use_energy=False,
                window_type="hanning",
                num_mel_bins=cfg.mels,
                dither=0.0,
                frame_shift=10,
            )
            for waveform_S in waveform_BS
        ]
    )


def bench_features(cfg: InputConfig, batch_size: int, device: torch.device, repeats: int = 10) -> dict[str, Any]:
    """Clips/s of both on a batch of noise, and how far apart their results are.

    `largest_relative_error` is that of values whose size is above 0.1: near 0 it means nothing.
    """
    seed_B = torch.arange(batch_size, device=device)
    wave_BS = 0.1 * normal(seed_B, "noise", (window_samples(cfg),))
    wave_BS = wave_BS - wave_BS.mean(dim=1, keepdim=True)
    ours = log_mel(wave_BS, cfg.mels, cfg.sample_rate)
    theirs = torchaudio_log_mel(wave_BS, cfg)
    difference = (ours - theirs).abs()
    sized = theirs.abs() > 0.1
    seconds = {
        "avpretrain": median_seconds(lambda: log_mel(wave_BS, cfg.mels, cfg.sample_rate), 3, repeats),
        "torchaudio": median_seconds(lambda: torchaudio_log_mel(wave_BS, cfg), 1, repeats),
    }
    return {
        "device": device.type,
        "batch_size": batch_size,
        "frames": cfg.audio_frames,
        "mels": cfg.mels,
        "threads": torch.get_num_threads(),
        "clips_per_second": {name: batch_size / s for name, s in seconds.items()},
        "times_as_fast": seconds["torchaudio"] / seconds["avpretrain"],
        "largest_absolute_error": float(difference.max()),
        "largest_relative_error": float((difference / theirs.abs())[sized].max()),
    }
