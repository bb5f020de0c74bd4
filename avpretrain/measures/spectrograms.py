"""Log-mel spectrograms to look at: frequencies in Hz, time in seconds, padding shown as padding.

F spectrogram frames of 10 ms, M mel bins.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avpretrain.data.features import LOWEST_HZ

SECONDS = 0.01
"""Of a frame."""
MARKS = (100, 500, 1000, 2000, 4000, 8000, 16_000)
"""Frequencies in Hz that an axis may name."""
HIDDEN, PADDING = "0.75", "0.55"
"""Greys of patches that are hidden, and of the hatching where a clip has ended."""


def mel_bin(hz: float, mels: int, sample_rate: int) -> float:
    """The bin, counted from 0, whose triangle peaks at a frequency; between bins a fraction."""
    low, high, here = (1127 * math.log1p(f / 700) for f in (LOWEST_HZ, sample_rate / 2, hz))
    return (here - low) * (mels + 1) / (high - low) - 1


def hz_ticks(mels: int, sample_rate: int, apart: float = 0.08) -> tuple[list[float], list[str]]:
    """Places and labels of an axis of mel bins in Hz, at least a share `apart` of the axis from one to the next."""
    places: list[float] = []
    labels: list[str] = []
    for hz in MARKS:
        place = mel_bin(hz, mels, sample_rate)
        if place <= mels - 0.5 and (not places or place - places[-1] >= apart * mels):
            places.append(place)
            labels.append(f"{hz // 1000}k" if hz >= 1000 else str(hz))
    return places, labels


def draw_spectrogram(
    axis: Any,
    audio_FM: NDArray[np.float32],
    frames: int,
    limits: tuple[float, float],
    sample_rate: int,
    apart: float = 0.08,
    size: float = 7.0,
) -> None:
    """Draws on an axis of matplotlib, low frequencies at the bottom; NaN stays grey.

    Args:
        frames: of the clip; what follows is padding and is hatched.
        limits: values that are black and white.
        apart: see `hz_ticks`; 1 = no frequencies at the axis.
        size: of labels, in points.
    """
    length, mels = audio_FM.shape
    shown_FM = np.where(np.arange(length)[:, None] < frames, audio_FM, np.nan)
    axis.set_facecolor(HIDDEN)
    axis.imshow(
        shown_FM.T, origin="lower", aspect="auto", cmap="magma", vmin=limits[0], vmax=limits[1],
        extent=(0, length * SECONDS, -0.5, mels - 0.5), interpolation="nearest",
    )  # fmt: skip
    if frames < length:
        start, end = frames * SECONDS, length * SECONDS
        axis.axvspan(start, end, facecolor="white", edgecolor=PADDING, hatch="////", linewidth=0)
        inches = (1 - frames / length) * axis.get_position().width * axis.figure.get_figwidth()
        if inches > 0.07 * size:  # the word fits
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            axis.text((start + end) / 2, mels / 2, "padding", ha="center", va="center", fontsize=size, bbox=box)
    places, labels = hz_ticks(mels, sample_rate, apart) if apart < 1 else ([], [])
    axis.set_yticks(places, labels, fontsize=size)
    axis.tick_params(length=2, pad=1.5, labelsize=size)
