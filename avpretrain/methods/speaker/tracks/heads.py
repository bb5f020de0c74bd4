"""Synthetic talking heads: mouths that follow the voice that is heard, or don't.

A scene has one face or several, a mixture of audio, and a label for each face and frame. Everything comes in bouts of
4 to 12 syllables with pauses between. In a bout a face speaks (its mouth follows a voice that is heard), mouths (it
moves in the same way and is not heard) or chews (a rhythm of its own). A voice without a face, music and noise may be
heard, too. Speaking, mouthing and an off-screen voice are drawn from one law, so that neither mouth nor audio alone
tells them apart: what does is whether they go together, and one frame says little of that.

**Symmetry in time.** "reversible": a scene played backwards is as likely as the scene itself, since bouts, pauses and
syllables are independent draws with symmetrical shapes, cut from a longer stationary sequence; equal windows of past
and future then hold equal information on average. "onset": every mouth that moves is covered from `COVERED_AFTER`
seconds after its bout began to the end of it, so that a label late in a bout follows from what was seen before, and
hardly from what comes after. `time_reversed` plays scenes backwards: with "onset" it is the future that tells.

F faces, T frames at 25 a second, K points of a finer grid, S waveform samples, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avpretrain.methods.speaker.config import FPS, FRAME_SAMPLES, SAMPLE_RATE
from avpretrain.methods.speaker.data import TrackClip
from avpretrain.methods.speaker.tracks.config import Symmetry

Floats = NDArray[np.float64]
FINE = 8
"""Points of the finer grid in a frame."""
SYLLABLES = (4, 12)
SYLLABLE_SECONDS, GAP_SECONDS, PAUSE_SECONDS = (0.12, 0.26), (0.0, 0.06), (0.4, 1.6)
CHEW_SECONDS = (0.35, 0.55)
BEFORE = 20.0
"""Seconds of the sequence of bouts before the scene begins and after it ends: enough to forget where it began."""
COVERED_AFTER = 0.32
KINDS: tuple[Literal["speaks", "mouths", "chews"], ...] = ("speaks", "mouths", "chews")
SHARES = (0.55, 0.25, 0.2)
HARMONICS = 16


@dataclass(frozen=True)
class Bout:
    """A stretch of movement, in seconds of the scene."""

    kind: str
    start: float
    end: float
    syllables: Floats
    """[N, 3]: centre and length in seconds, height in (0, 1]."""


@dataclass(frozen=True)
class HeadScene:
    """A scene, rendered."""

    name: str
    faces_FTHW: NDArray[np.uint8]
    waveform_S: NDArray[np.float32]
    labels_FT: NDArray[np.int8]

    def clips(self) -> list[TrackClip]:
        """A track for each face."""
        return [
            TrackClip(faces_THW, self.waveform_S, labels_T, self.name, f"{self.name}:{i}")
            for i, (faces_THW, labels_T) in enumerate(zip(self.faces_FTHW, self.labels_FT, strict=True))
        ]


def make_scene(
    index: int,
    seed: int = 0,
    seconds: float = 4.0,
    face_size: int = 64,
    max_faces: int = 3,
    symmetry: Symmetry = "reversible",
    time_reversed: bool = False,
) -> HeadScene:
    """Scene `index`, a pure function of its arguments.

    Args:
        index: which.
        seed: of all that is drawn.
        seconds: length.
        face_size: pixels of a face's height and width.
        max_faces: it has 1 to this many.
        symmetry: see the module.
        time_reversed: played backwards.
    """
    rng = np.random.default_rng([seed, index, 0x4845])
    frames = max(1, round(seconds * FPS))
    length = frames / FPS
    faces, labels, audio_S = [], [], np.zeros(frames * FRAME_SAMPLES)
    for _ in range(rng.integers(1, max_faces + 1)):
        bouts = _bouts(length, rng, KINDS, SHARES)
        aperture_T = _aperture(bouts, frames, rng)
        covered_T = _covered(bouts, frames) if symmetry == "onset" else np.zeros(frames, bool)
        faces.append(_render(aperture_T, covered_T, face_size, rng))
        labels.append(_labels(bouts, frames))
        audio_S += _voice([bout for bout in bouts if bout.kind == "speaks"], frames, rng)
    audio_S += _surroundings(length, frames, rng)
    audio_S *= rng.uniform(0.3, 0.9) / max(1e-3, float(np.abs(audio_S).max()))
    faces_FTHW, labels_FT = np.stack(faces), np.stack(labels)
    if time_reversed:
        faces_FTHW, labels_FT, audio_S = faces_FTHW[:, ::-1], labels_FT[:, ::-1], audio_S[::-1]
    return HeadScene(
        f"scene-{index:06d}",
        np.ascontiguousarray(faces_FTHW),
        np.ascontiguousarray(audio_S, np.float32),
        np.ascontiguousarray(labels_FT),
    )


def _bouts(length: float, rng: np.random.Generator, kinds: tuple[str, ...], shares: tuple[float, ...]) -> list[Bout]:
    """The bouts of a scene: a stretch out of the middle of a long sequence."""
    found, time = [], -BEFORE - rng.uniform(0, 4)
    while time < length + BEFORE:
        time += rng.uniform(*PAUSE_SECONDS)
        kind = str(rng.choice(kinds, p=shares))
        count = int(rng.integers(SYLLABLES[0], SYLLABLES[1] + 1))
        if kind == "chews":
            count = max(2, count // 2)
            lengths, gaps = np.full(count, rng.uniform(*CHEW_SECONDS)), np.zeros(count)
        else:
            lengths, gaps = rng.uniform(*SYLLABLE_SECONDS, count), rng.uniform(*GAP_SECONDS, count)
        gaps[-1] = 0
        starts = time + np.concatenate([[0], np.cumsum(lengths + gaps)[:-1]])
        syllables = np.stack([starts + lengths / 2, lengths, rng.uniform(0.35, 1.0, count)], axis=1)
        end = float(starts[-1] + lengths[-1])
        if end > 0 and time < length:
            found.append(Bout(kind, time, end, syllables))
        time = end
    return found


def _bumps(syllables: Floats, time_K: Floats) -> Floats:
    """[K]: the sum of raised cosines."""
    total_K = np.zeros(len(time_K))
    for centre, length, height in syllables:
        first, last = np.searchsorted(time_K, (centre - length / 2, centre + length / 2))
        phase = (time_K[first:last] - centre) / length
        total_K[first:last] += height * (0.5 + 0.5 * np.cos(2 * np.pi * phase))
    return total_K


def _aperture(bouts: list[Bout], frames: int, rng: np.random.Generator) -> Floats:
    """[T] in [0, 1.3]: how far the mouth is open in the middle of each frame."""
    time_K = (np.arange(frames * FINE) + 0.5) / (FPS * FINE)
    open_K = np.zeros(len(time_K))
    for bout in bouts:
        opened = bout.syllables.copy()
        opened[:, 2] *= rng.uniform(0.75, 1.25, len(opened))
        open_K += _bumps(opened, time_K)
    open_T = open_K.reshape(frames, FINE).mean(axis=1)
    return np.clip(open_T + 0.03 * rng.standard_normal(frames), 0, 1.3)


def _labels(bouts: list[Bout], frames: int) -> NDArray[np.int8]:
    """[T]: 1 where the middle of a frame lies in a bout of speech."""
    time_T = (np.arange(frames) + 0.5) / FPS
    label_T = np.zeros(frames, np.int8)
    for bout in bouts:
        if bout.kind == "speaks":
            label_T[(time_T >= bout.start) & (time_T < bout.end)] = 1
    return label_T


def _covered(bouts: list[Bout], frames: int) -> NDArray[np.bool_]:
    """[T]: where the mouth is covered: late in a bout."""
    time_T = (np.arange(frames) + 0.5) / FPS
    return np.any([(time_T >= b.start + COVERED_AFTER) & (time_T < b.end) for b in bouts] or [time_T < 0], axis=0)


def _voice(bouts: list[Bout], frames: int, rng: np.random.Generator) -> Floats:
    """[S]: harmonics of a pitch, each syllable with the resonances of a vowel, and some breath."""
    time_S = (np.arange(frames * FRAME_SAMPLES) + 0.5) / SAMPLE_RATE
    wave_S = np.zeros(len(time_S))
    pitch, level = rng.uniform(90, 250), rng.uniform(0.6, 1.0)
    wobble = 0.02 * np.sin(2 * np.pi * (rng.uniform(0.5, 3) * time_S + rng.uniform()))
    phases = rng.uniform(0, 2 * np.pi, HARMONICS)
    turns_S = pitch * (time_S + wobble / 10)
    for bout in bouts:
        for syllable in bout.syllables:
            first, last = np.searchsorted(time_S, (syllable[0] - syllable[1] / 2, syllable[0] + syllable[1] / 2))
            low, high = rng.uniform(280, 850), rng.uniform(900, 2400)
            breath = rng.standard_normal(last - first)
            if first == last:
                continue
            tone = 0.15 * breath
            for number in range(1, HARMONICS + 1):
                hertz = number * pitch
                weight = np.exp(-(((hertz - low) / 200) ** 2)) + 0.6 * np.exp(-(((hertz - high) / 300) ** 2)) + 0.05
                tone += weight * np.sin(2 * np.pi * number * turns_S[first:last] + phases[number - 1])
            wave_S[first:last] += tone * _bumps(syllable[None], time_S[first:last])
    return level * wave_S


def _surroundings(length: float, frames: int, rng: np.random.Generator) -> Floats:
    """[S]: a voice without a face, music, and noise; each may be absent but for a little noise."""
    samples = frames * FRAME_SAMPLES
    wave_S = np.zeros(samples)
    if rng.random() < 0.6:
        wave_S += rng.uniform(0.6, 1.0) * _voice(_bouts(length, rng, ("speaks",), (1.0,)), frames, rng)
    if rng.random() < 0.3:
        wave_S += _music(frames, rng)
    noise_S = rng.standard_normal(samples)
    if rng.random() < 0.5:  # duller, by a filter that is the same both ways
        noise_S = 3 * np.convolve(noise_S, np.hanning(17) / np.hanning(17).sum(), "same")
    return wave_S + 10 ** rng.uniform(-2.0, -0.8) * noise_S


def _music(frames: int, rng: np.random.Generator) -> Floats:
    """[S]: notes of a chord on a beat."""
    time_S = (np.arange(frames * FRAME_SAMPLES) + 0.5) / SAMPLE_RATE
    wave_S, beat = np.zeros(len(time_S)), rng.uniform(0.25, 0.6)
    root, level = rng.uniform(110, 330), rng.uniform(0.15, 0.6)
    begin = -rng.uniform(0, beat)
    for number in range(int((frames / FPS - begin) / beat) + 1):
        centre = begin + (number + 0.5) * beat
        first, last = np.searchsorted(time_S, (centre - beat / 2, centre + beat / 2))
        hertz = root * 2 ** (rng.choice([0, 3, 4, 7, 12]) / 12)
        note = np.array([[centre, beat, rng.uniform(0.3, 1.0)]])
        angle = 2 * np.pi * hertz * time_S[first:last] + rng.uniform(0, 2 * np.pi)
        wave_S[first:last] += _bumps(note, time_S[first:last]) * (np.sin(angle) + 0.4 * np.sin(2 * angle))
    return level * wave_S


# --- the picture ----------------------------------------------------------------------------------------------------


def _waves(frames: int, rng: np.random.Generator) -> Floats:
    """[T] around 0, about 1 in size: slow waves."""
    time_T = np.arange(frames) / FPS
    return sum(
        (0.6 * np.sin(2 * np.pi * (rng.uniform(0.1, 0.7) * time_T + rng.uniform())) for _ in range(3)),
        np.zeros(frames),
    )


def _render(aperture_T: Floats, covered_T: NDArray[np.bool_], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [T, H, W]: a head that sways and blinks."""
    frames = len(aperture_T)
    at_H = (np.arange(size, dtype=np.float32) + 0.5) / size
    x_T, y_T = 0.5 + 0.02 * _waves(frames, rng), 0.5 + 0.015 * _waves(frames, rng)
    scale_T = rng.uniform(0.9, 1.08) * (1 + 0.02 * _waves(frames, rng))
    skin, behind, dark = rng.uniform(0.5, 0.85), rng.uniform(0.1, 0.45), rng.uniform(0.02, 0.15)
    mouth_y, mouth_width = rng.uniform(0.2, 0.25), rng.uniform(0.10, 0.15)
    lips = skin * rng.uniform(0.65, 0.85)
    image: NDArray[np.float32] = np.full((frames, size, size), behind, np.float32)

    def paint(dx: float, dy: float, width: Any, height: Any, value: float) -> None:
        """An ellipse around a place of the face, soft at its border; width and height are numbers, or [T]."""
        wide_T, high_T = width * scale_T, height * scale_T
        across_TW = (at_H - (x_T + dx * scale_T)[:, None]) / wide_T[:, None]
        down_TH = (at_H - (y_T + dy * scale_T)[:, None]) / high_T[:, None]
        away_THW = np.sqrt((across_TW**2).astype(np.float32)[:, None, :] + (down_TH**2).astype(np.float32)[:, :, None])
        sharp_T = (size * np.minimum(wide_T, high_T) / 1.5).astype(np.float32)
        cover_THW = np.clip((1 - away_THW) * sharp_T[:, None, None] + 0.5, 0, 1)
        image[...] += cover_THW * (np.float32(value) - image)

    open_T = 1 - 0.85 * np.clip(_blinks(frames, rng), 0, 1)
    paint(0, 0, 0.36, 0.46, skin)
    for side in (-1, 1):
        paint(side * 0.15, -0.1, 0.055, 0.035 * open_T, dark)
    paint(0, 0.05, 0.02, 0.08, 0.85 * skin)
    height_T = 0.012 + 0.085 * aperture_T
    paint(0, mouth_y, 1.25 * mouth_width, height_T + 0.02, lips)
    paint(0, mouth_y, mouth_width * (1 - 0.2 * np.clip(aperture_T, 0, 1)), height_T, dark)
    if covered_T.any():
        paint(0, mouth_y, 0.24 * covered_T + 1e-3, 0.16, 0.5 * (skin + behind))
    image *= 1 + np.float32(rng.uniform(-0.3, 0.3)) * (at_H - 0.5)
    image += np.float32(rng.uniform(0.005, 0.03)) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def _blinks(frames: int, rng: np.random.Generator) -> Floats:
    """[T] in [0, 1]: closed eyes, now and then."""
    time_T, closed_T = np.arange(frames) / FPS, np.zeros(frames)
    for _ in range(rng.poisson(0.3 * frames / FPS)):
        closed_T += np.clip(1 - np.abs(time_T - rng.uniform(0, frames / FPS)) / 0.12, 0, 1)
    return closed_T


# --- scenes as videos -----------------------------------------------------------------------------------------------

TILE_MARGIN = 0.1
"""Margin by which a face's box must be widened for its tile."""


def scene_frames(scene: HeadScene) -> Iterator[NDArray[np.uint8]]:
    """RGB frames [H, F * H, 3]: the faces side by side."""
    for number in range(scene.faces_FTHW.shape[1]):
        grey_HW = np.concatenate(list(scene.faces_FTHW[:, number]), axis=1)
        yield np.repeat(grey_HW[:, :, None], 3, axis=2)


def scene_rows(scene: HeadScene) -> Iterator[list[str]]:
    """Rows as AVA has them, of all faces and frames."""
    faces, frames = scene.labels_FT.shape
    inner = TILE_MARGIN / (1 + 2 * TILE_MARGIN)
    for face in range(faces):
        box = (face + inner) / faces, inner, (face + 1 - inner) / faces, 1 - inner
        for number in range(frames):
            label = "SPEAKING_AUDIBLE" if scene.labels_FT[face, number] else "NOT_SPEAKING"
            corners = [f"{value:.6f}" for value in box]
            yield [scene.name, f"{number / FPS:.2f}", *corners, label, f"{scene.name}:{face}"]
