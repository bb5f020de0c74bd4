"""Spectrograms to look at: where frequencies lie, and what padding looks like."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from avpretrain.data.features import mel_filters
from avpretrain.measures.spectrograms import draw_spectrogram, hz_ticks, mel_bin


@pytest.mark.parametrize(("mels", "rate"), [(128, 16_000), (80, 32_000)])
def test_a_bin_lies_where_its_filter_peaks(mels: int, rate: int) -> None:
    size = 1 << 16
    peak_M = mel_filters(mels, rate, size).argmax(dim=0) * rate / size
    for m in range(0, mels, 7):
        assert mel_bin(float(peak_M[m]), mels, rate) == pytest.approx(m, abs=0.05)


def test_ticks_are_on_the_axis_and_do_not_crowd() -> None:
    places, labels = hz_ticks(128, 16_000)
    assert labels[:3] == ["100", "500", "1k"] and labels[-1] == "4k"  # 8 kHz is beyond the last bin
    assert all(-0.5 <= place <= 127.5 for place in places)
    assert len(hz_ticks(128, 16_000, apart=0.3)[0]) < len(places)


def test_padding_is_hatched_and_the_clip_is_not() -> None:
    audio_FM = np.ones((100, 16), np.float32)
    audio_FM[20:30] = np.nan
    whole, short = Figure(figsize=(8, 4)).subplots(1, 2)
    draw_spectrogram(whole, audio_FM, 100, (0, 1), 16_000)
    assert not whole.patches and not whole.texts
    draw_spectrogram(short, audio_FM, 60, (0, 1), 16_000)
    (span,) = short.patches
    assert span.get_hatch() and (span.get_x(), span.get_width()) == (pytest.approx(0.6), pytest.approx(0.4))
    assert [text.get_text() for text in short.texts] == ["padding"]
    shown_MF = np.ma.filled(short.images[0].get_array(), np.nan)
    assert np.isnan(shown_MF[:, 60:]).all() and np.isfinite(shown_MF[:, 30:60]).all()


def test_no_word_stands_where_it_does_not_fit() -> None:
    axis = Figure(figsize=(2, 1)).subplots()
    draw_spectrogram(axis, np.ones((100, 16), np.float32), 90, (0, 1), 16_000)
    assert axis.patches and not axis.texts
