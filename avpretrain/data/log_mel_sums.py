"""Mean and standard deviation of a data set's log-mel values, measured while it is sharded.

The same values as `features.log_mel`, in NumPy: the many processes that transcode then start in a moment, need no torch
and a fifth of the memory. A test holds the two together. S samples, F spectrogram frames, W samples of one frame,
K frequencies, M mel bins.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from avpretrain.data.decode import Sound

MELS = 128
"""Bins that data sets are measured at; `log_mel_stats` brings what was measured to others."""
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
BLOCK = 3000
"""Spectrogram frames at a time, which bounds memory on long clips."""


class LogMelSums(NamedTuple):
    """What mean and standard deviation are computed from."""

    clips: int
    values: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        return self.total / self.values if self.values else 0.0

    @property
    def variance(self) -> float:
        return max(0.0, self.squares / self.values - self.mean**2) if self.values else 0.0

    def plus(self, other: LogMelSums) -> LogMelSums:
        """The sums over both."""
        return LogMelSums(
            self.clips + other.clips,
            self.values + other.values,
            self.total + other.total,
            self.squares + other.squares,
        )

    def minus(self, other: LogMelSums) -> LogMelSums:
        """The sums without those of `other`, which they hold."""
        return self.plus(LogMelSums(-other.clips, -other.values, -other.total, -other.squares))


def log_mel_sums(pcm_S: Sound, sample_rate: int, mels: int = MELS) -> LogMelSums:
    """Sums over the log-mel values of one clip, the waveform's mean removed."""
    wave_S = pcm_S.astype(np.float32) / 32768
    wave_S -= wave_S.mean() if len(wave_S) else 0
    length, shift = int(sample_rate * 0.025), int(sample_rate * 0.010)
    sums = LogMelSums(1, 0, 0.0, 0.0)
    for first in range(0, len(wave_S) - length + 1, BLOCK * shift):
        block_S = wave_S[first : first + (BLOCK - 1) * shift + length]
        mel_FM = log_mel(block_S, length, shift, sample_rate, mels).astype(np.float64)
        sums = sums.plus(LogMelSums(0, mel_FM.size, float(mel_FM.sum()), float(np.square(mel_FM).sum())))
    return sums


def log_mel(wave_S: np.ndarray, length: int, shift: int, sample_rate: int, mels: int = MELS) -> np.ndarray:
    """float32 [F, M]: Kaldi's log-mel filter bank energies of a waveform in [-1, 1] (see `features.log_mel`)."""
    frames_FW = np.lib.stride_tricks.sliding_window_view(wave_S, length)[::shift]
    frames_FW = frames_FW - frames_FW.mean(axis=1, keepdims=True)
    before_FW = np.concatenate([frames_FW[:, :1], frames_FW[:, :-1]], axis=1)
    frames_FW = (frames_FW - PREEMPHASIS * before_FW) * np.hanning(length).astype(np.float32)
    size = 1 << (length - 1).bit_length()
    spectrum_FK = np.fft.rfft(frames_FW, n=size, axis=1)[:, :-1]  # Kaldi leaves out half the sample rate itself
    power_FK = np.square(spectrum_FK.real) + np.square(spectrum_FK.imag)
    energy_FM = power_FK.astype(np.float32) @ mel_filters(sample_rate, size, mels)
    return np.log(np.maximum(energy_FM, np.finfo(np.float32).eps))


@functools.cache
def mel_filters(sample_rate: int, size: int, mels: int = MELS) -> np.ndarray:
    """float32 [K, M]: triangles evenly spaced on HTK's mel scale, from 20 Hz to half the sample rate."""
    low, high = (1127 * math.log1p(hz / 700) for hz in (LOWEST_HZ, sample_rate / 2))
    edges_M = np.linspace(low, high, mels + 2)
    mel_K1 = 1127 * np.log1p(np.arange(size // 2)[:, None] * sample_rate / size / 700)
    rising_KM = (mel_K1 - edges_M[:-2]) / (edges_M[1:-1] - edges_M[:-2])
    falling_KM = (edges_M[2:] - mel_K1) / (edges_M[2:] - edges_M[1:-1])
    return np.maximum(0, np.minimum(rising_KM, falling_KM)).astype(np.float32)
