"""The sound of a scene: damped partials for impacts, gliding harmonics and hiss for rolling, and what is off screen.

S samples of the waveform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avpretrain.data.scenes.motion import RATE, Hit, Hum, Motion

Waveform = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timbre:
    """How a material rings."""

    partials: tuple[float, ...]
    """Frequencies as multiples of the lowest."""
    decay: float
    """Seconds until the lowest partial has fallen to 1/e; higher ones fall sooner."""
    tilt: float
    """Level of a partial goes as its multiple to the power of minus this."""
    click: float
    """Level of the burst of noise at the strike."""


TIMBRES = {
    "glass": Timbre(partials=(1.0, 2.32, 4.25, 6.63), decay=0.07, tilt=0.5, click=0.1),
    "metal": Timbre(partials=(1.0, 2.76, 5.40, 8.93), decay=0.09, tilt=0.7, click=0.15),
    "rubber": Timbre(partials=(1.0, 1.52, 2.05), decay=0.04, tilt=1.8, click=0.1),
    "stone": Timbre(partials=(1.0, 1.83, 2.91, 4.6), decay=0.03, tilt=0.6, click=0.6),
    "wood": Timbre(partials=(1.0, 2.57, 4.95), decay=0.045, tilt=1.1, click=0.3),
}

OFFSCREEN = ("none", "drone", "wind", "taps")
"""Sounds whose source is not in view."""


def _strike(hit: Hit, timbre: Timbre, sample_rate: int, rng: np.random.Generator) -> Waveform:
    """One impact, cut when it has faded by 60 dB; harder ones are brighter."""
    t_S = np.arange(int(7 * timbre.decay * sample_rate)) / sample_rate
    sound_S = timbre.click * rng.standard_normal(len(t_S)) * np.exp(-t_S / 0.006)
    for multiple in timbre.partials:
        frequency = hit.pitch * multiple
        if frequency < 0.45 * sample_rate:
            level = multiple ** -(timbre.tilt + 0.8 * (1 - hit.strength))
            phase = rng.uniform(0, 2 * np.pi)
            sound_S += level * np.sin(2 * np.pi * frequency * t_S + phase) * np.exp(-t_S * multiple**0.6 / timbre.decay)
    return hit.strength * sound_S * np.minimum(1.0, t_S / 0.001)


def _impacts(hits: list[Hit], timbre: Timbre, length: int, sample_rate: int, rng: np.random.Generator) -> Waveform:
    out_S, known = np.zeros(length), dict[tuple[float, float], Waveform]()
    for hit in hits:
        kind = hit.pitch, hit.strength  # the same thing struck as hard sounds the same
        if kind not in known:
            known[kind] = _strike(hit, timbre, sample_rate, rng)
        sound_S = known[kind]
        first = round(hit.time * sample_rate)
        skip = max(0, -first)
        part_S = sound_S[skip : skip + max(0, length - max(0, first))]
        out_S[max(0, first) : max(0, first) + len(part_S)] += part_S
    return out_S


def _rolling(hum: Hum, timbre: Timbre, length: int, sample_rate: int, rng: np.random.Generator) -> Waveform:
    """A tone and its harmonics that follow the speed, roughened by noise."""
    t_S = np.arange(length) / sample_rate
    t_K = np.arange(len(hum.pitch_K)) / RATE
    pitch_S, level_S = np.interp(t_S, t_K, hum.pitch_K), np.interp(t_S, t_K, hum.level_K)
    phase_S = 2 * np.pi * np.cumsum(pitch_S) / sample_rate
    out_S = np.zeros(length)
    for multiple in timbre.partials:
        inside_S = pitch_S * multiple < 0.45 * sample_rate
        out_S += multiple**-timbre.tilt * np.sin(multiple * phase_S + rng.uniform(0, 2 * np.pi)) * inside_S
    rough_S = 1 + 0.4 * np.interp(t_S, t_K, rng.standard_normal(len(t_K)))
    return level_S * (out_S * rough_S + 0.5 * timbre.click * rng.standard_normal(length))


def coloured_noise(length: int, sample_rate: int, slope: float, rng: np.random.Generator) -> Waveform:
    """Noise of unit RMS whose power falls by `slope` times 3 dB an octave (0 white, 1 pink, 2 brown) above 50 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(np.fft.rfftfreq(length, 1 / sample_rate), 50.0)
    noise_S = np.fft.irfft(spectrum * frequency ** (-slope / 2), length)
    return noise_S / np.sqrt(np.mean(noise_S**2))


def _offscreen(kind: str, length: int, sample_rate: int, rng: np.random.Generator) -> Waveform:
    """A sound of unit RMS that nothing in view makes."""
    t_S = np.arange(length) / sample_rate
    if kind == "drone":
        pitch = rng.uniform(90, 400)
        wobble_S = 1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * t_S)
        out_S = wobble_S * sum(np.sin(2 * np.pi * pitch * h * t_S + rng.uniform(0, 6.28)) / h for h in range(1, 7))
    elif kind == "wind":
        gusts_S = 1 + 0.6 * np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * t_S + rng.uniform(0, 6.28))
        out_S = gusts_S * coloured_noise(length, sample_rate, 2.0, rng)
    else:
        hits = [
            Hit(time=t, strength=rng.uniform(0.4, 0.8), pitch=rng.uniform(300, 1500), x=0.0, y=0.0)
            for t in rng.uniform(0, length / sample_rate, 1 + int(1.5 * length / sample_rate))
        ]
        out_S = _impacts(hits, TIMBRES["wood"], length, sample_rate, rng)
    return out_S / np.sqrt(np.mean(out_S**2) + 1e-12)


def _typical_level(sound_S: Waveform, sample_rate: int) -> float:
    """Mean level in dB of 50 ms windows, as an amplitude: makes sparse and sustained sounds alike in their average."""
    window = sample_rate // 20
    frames = sound_S[: len(sound_S) // window * window].reshape(-1, window)
    rms = np.sqrt(np.mean(frames**2, axis=1))
    return float(np.exp(np.mean(np.log(rms + 0.03 * rms.max() + 1e-9))))


def render_sound(
    motion: Motion, material: str, offscreen: str, seconds: float, sample_rate: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The scene's waveform [S] in (-1, 1): what moves, what is off screen, a noise floor, at a random level."""
    length, timbre = round(seconds * sample_rate), TIMBRES[material]
    sound_S = _impacts(motion.hits, timbre, length, sample_rate, rng)
    if motion.hum is not None:
        sound_S += _rolling(motion.hum, timbre, length, sample_rate, rng)
    sound_S /= _typical_level(sound_S, sample_rate) + 1e-6
    noise_S = coloured_noise(length, sample_rate, rng.uniform(0.0, 2.0), rng)
    sound_S += 10 ** (rng.uniform(-35, -20) / 20) * noise_S
    if offscreen != "none":
        sound_S += 10 ** (rng.uniform(-20, -10) / 20) * _offscreen(offscreen, length, sample_rate, rng)
    peak = 10 ** (rng.uniform(-10, -2) / 20)
    return (sound_S * (peak / np.abs(sound_S).max())).astype(np.float32)
