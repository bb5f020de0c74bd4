"""What the device makes of decoded clips: log-mel spectrograms and normalised frames, batched, in float32.

B clips, S waveform samples, F spectrogram frames, W samples of one frame, K frequencies, M mel bins, T frames of video,
H height, W width, C colours.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avpretrain.config.model import InputConfig
from avpretrain.config.train import AugmentConfig
from avpretrain.core.errors import UsageError
from avpretrain.data import augment as aug
from avpretrain.data.batch import AVBatch, RawBatch

__all__ = ["Features", "centred", "log_mel"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
EPSILON = torch.finfo(torch.float32).eps
CPU_FRAMES = 256
"""Spectrogram frames at a time on a CPU: what they need fits its caches."""


def frame_length(sample_rate: int) -> int:
    """Samples in a frame of 25 ms."""
    return int(sample_rate * 0.025)


def frame_shift(sample_rate: int) -> int:
    """Samples from one frame to the next, 10 ms."""
    return int(sample_rate * 0.010)


def frame_counts(samples_B: Tensor, sample_rate: int) -> Tensor:
    """Whole frames in each number of samples, int64."""
    length, shift = frame_length(sample_rate), frame_shift(sample_rate)
    return torch.where(samples_B < length, 0, 1 + (samples_B - length) // shift)


@lru_cache(maxsize=16)
def mel_filters(mels: int, sample_rate: int, size: int) -> Tensor:
    """[K, M] triangles, evenly spaced on HTK's mel scale from 20 Hz to half the sample rate; `size` points of FFT.

    In float32 from the start: narrow triangles catch a frequency by their very edge, and there its rounding shows.
    """
    low, high = (1127 * math.log1p(hz / 700) for hz in (LOWEST_HZ, sample_rate / 2))
    width = (high - low) / (mels + 1)
    edge_M = torch.arange(mels + 2, dtype=torch.float32)[:, None]
    left_M1, centre_M1, right_M1 = (low + edge_M[i : mels + i] * width for i in range(3))
    hz_K = sample_rate / size * torch.arange(size // 2, dtype=torch.float32)
    mel_1K = (1127.0 * (1.0 + hz_K / 700.0).log())[None]
    rising_MK = (mel_1K - left_M1) / (centre_M1 - left_M1)
    falling_MK = (right_M1 - mel_1K) / (right_M1 - centre_M1)
    filters_MK = torch.minimum(rising_MK, falling_MK).clamp(min=0)
    return F.pad(filters_MK, (0, 1)).T.contiguous()  # half the sample rate itself is left out, as in Kaldi


@lru_cache(maxsize=16)
def _bank(mels: int, sample_rate: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Window [W], filters [K, M] and points of the FFT; on the device once, since a copy there waits for its work."""
    window_W = torch.hann_window(frame_length(sample_rate), periodic=False, device=device)
    size = 1 << (len(window_W) - 1).bit_length()
    return window_W, mel_filters(mels, sample_rate, size).to(device), size


def log_mel(waveform_BS: Tensor, mels: int = 128, sample_rate: int = 16_000) -> Tensor:
    """Kaldi's log-mel filter bank energies, [B, F, M], as `torchaudio.compliance.kaldi.fbank` computes them.

    Frames of 25 ms every 10 ms, each without its mean, pre-emphasised, under a Hann window; power spectrum; mel
    triangles; logarithm (htk_compat, window_type "hanning", dither 0, use_energy False, snip_edges).

    Args:
        waveform_BS: float32 in [-1, 1], without its mean (see `centred`).
    """
    with torch.autocast(waveform_BS.device.type, enabled=False):
        window_W, filters_KM, size = _bank(mels, sample_rate, waveform_BS.device)
        frames_BFW = waveform_BS.float().unfold(1, len(window_W), frame_shift(sample_rate))
        if waveform_BS.device.type != "cpu":
            return _log_mel(frames_BFW, window_W, filters_KM, size)
        mel_BFM = waveform_BS.new_empty(*frames_BFW.shape[:2], mels, dtype=torch.float32)
        for frames_FW, mel_FM in zip(frames_BFW, mel_BFM, strict=True):
            for part_FW, out_FM in zip(frames_FW.split(CPU_FRAMES), mel_FM.split(CPU_FRAMES), strict=True):
                out_FM.copy_(_log_mel(part_FW, window_W, filters_KM, size))
        return mel_BFM


def _log_mel(frames_FW: Tensor, window_W: Tensor, filters_KM: Tensor, size: int) -> Tensor:
    """[..., F, M] of frames [..., F, W]; each step rounds as Kaldi's does, since quiet frames show the last bit."""
    frames_FW = frames_FW - frames_FW.mean(dim=-1, keepdim=True)
    # x[t] - 0.97 x[t-1]; the first sample is its own predecessor, as in Kaldi
    before_FW = torch.cat([frames_FW[..., :1], frames_FW[..., :-1]], dim=-1).mul_(PREEMPHASIS)
    spectrum_FK = torch.fft.rfft(frames_FW.sub_(before_FW).mul_(window_W), n=size)
    power_FK = spectrum_FK.real.square().addcmul_(spectrum_FK.imag, spectrum_FK.imag)
    return (power_FK @ filters_KM).clamp_(min=EPSILON).log_()


def log_mel_of_windows(windows_FW: Tensor, mels: int = 128, sample_rate: int = 16_000) -> Tensor:
    """[..., M]: what `log_mel` makes of windows of 25 ms, [..., W], that the caller has cut; gradients flow to them."""
    with torch.autocast(windows_FW.device.type, enabled=False):
        return _log_mel(windows_FW.float(), *_bank(mels, sample_rate, windows_FW.device))


def centred(waveform_BS: Tensor, samples_B: Tensor) -> Tensor:
    """float32 in [-1, 1] from int16, without the mean of each clip's own samples; zero after them."""
    real_BS = torch.arange(waveform_BS.shape[1], device=waveform_BS.device) < samples_B[:, None]
    wave_BS = waveform_BS.float() / 32768
    mean_B1 = (wave_BS * real_BS).sum(dim=1, keepdim=True) / samples_B[:, None].clamp(min=1)
    return (wave_BS - mean_B1) * real_BS


class Features(nn.Module):
    """Decoded clips to the model's input, on whichever device the batch lies.

    Spectrogram frames after the end of the audio hold 0 before normalisation, as in AudioMAE, on whose habit MAViL's
    weights rest. No clip's features depend on the other clips of its batch.

    Args:
        augment: random crops, flips, gains and shifts, drawn from the clips' seeds; none = the central square.

    Raises:
        UsageError: the mean or the standard deviation of the log-mel is not set.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, input: InputConfig, augment: AugmentConfig | None = None) -> None:
        super().__init__()
        if input.audio_mean is None or input.audio_std is None:
            raise UsageError(
                "the model has no log-mel statistics (model.input.audio_mean and audio_std), so it can't hear; "
                "an imported model gets them by avpretrain import --audio-stats MEAN STD, or by training"
            )
        self.input, self.augment = input, augment
        self.audio_mean, self.audio_std = input.audio_mean, input.audio_std
        self.register_buffer("mean_C", torch.tensor(IMAGENET_MEAN) * 255, persistent=False)
        self.register_buffer("std_C", torch.tensor(IMAGENET_STD) * 255, persistent=False)

    @torch.no_grad()
    def forward(self, raw: RawBatch) -> AVBatch:
        return AVBatch(
            audio_BFM=self.audio(raw),
            video_BTCHW=self.video(raw),
            seed_B=raw.seed_B,
            has_audio_B=frame_counts(raw.samples_B, self.input.sample_rate) > 0,
            has_video_B=raw.size_B2.amin(dim=1) > 0,
        )

    def audio(self, raw: RawBatch) -> Tensor:
        """[B, F, M]: (log-mel - mean) / (2 std), cut or filled to `audio_frames`."""
        cfg = self.input
        wave_BS = raw.waveform_BS
        if self.augment is not None and self.augment.time_shift:
            shift_B = aug.shifts(raw.seed_B, self.augment.time_shift * cfg.sample_rate)
            wave_BS = aug.roll(wave_BS, raw.samples_B, shift_B)
        wave_BS = centred(wave_BS, raw.samples_B)
        if self.augment is not None and self.augment.gain_db:
            wave_BS = wave_BS * aug.gains(raw.seed_B, self.augment.gain_db)[:, None]
        needed = frame_length(cfg.sample_rate) + (cfg.audio_frames - 1) * frame_shift(cfg.sample_rate)
        mel_BFM = log_mel(F.pad(wave_BS, (0, needed - wave_BS.shape[1])), cfg.mels, cfg.sample_rate)
        frames_B = frame_counts(raw.samples_B, cfg.sample_rate)
        real_BF = torch.arange(cfg.audio_frames, device=mel_BFM.device) < frames_B[:, None]
        mel_BFM = mel_BFM.masked_fill(~real_BF[:, :, None], 0.0)
        return (mel_BFM - self.audio_mean) / (2 * self.audio_std)

    def video(self, raw: RawBatch) -> Tensor:
        """[B, T, C, H, W]: cropped, resized, normalised by ImageNet's colours; 0 where there is no video."""
        boxes_B4, flip_B = aug.central_squares(raw.size_B2), torch.zeros_like(raw.seed_B, dtype=torch.bool)
        if self.augment is not None:
            boxes_B4 = aug.random_boxes(raw.seed_B, raw.size_B2, self.augment.crop_scale, self.augment.crop_ratio)
            flip_B = aug.flips(raw.seed_B, self.augment.flip)
        crops_BTHWC = aug.crop(raw.frames_BTHWC, raw.size_B2, boxes_B4, flip_B, self.input.video_size)
        there_B = (raw.size_B2.amin(dim=1) > 0).float()
        normal_BTHWC = (crops_BTHWC - self.mean_C) / self.std_C * there_B[:, None, None, None, None]
        return normal_BTHWC.permute(0, 1, 4, 2, 3).contiguous()
