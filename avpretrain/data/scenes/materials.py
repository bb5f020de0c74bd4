"""How things look: random colours and light, and what five materials make of them. h, w a patch of the image."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.floating]
"""Colours from 0 to 1, or any value a pixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """All that is random about an image and says nothing of the class."""

    wall: tuple[Pixels, Pixels]
    """Colours at its top and bottom."""
    floor: Pixels
    prop: Pixels
    balls: tuple[Pixels, ...]
    """One colour a body, reused in turn."""
    light: Pixels
    """Unit vector towards the light: right, up, to the viewer."""
    brightness: float
    mirror: bool
    grain: Pixels
    """Random texture [32, 32], 0 to 1."""


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Pixels:
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)), np.float32)


def random_look(rng: np.random.Generator) -> Look:
    """Colours, light and texture."""
    across = rng.uniform(-0.6, 0.6)
    light = np.array([across, rng.uniform(0.45, 0.7), 0.6], np.float32)
    wall, depth = _colour(rng, (0.05, 0.35), (0.6, 0.9)), rng.uniform(0.7, 0.9)
    floor = _colour(rng, (0.1, 0.4), (0.4, 0.65))
    return Look(
        wall=(wall * np.float32(depth), wall),
        floor=floor,
        prop=_colour(rng, (0.2, 0.6), (0.2, 0.4)),
        balls=tuple(_colour(rng, (0.45, 0.85), (0.6, 1.0)) for _ in range(4)),
        light=light / np.linalg.norm(light),
        brightness=rng.uniform(0.85, 1.1),
        mirror=bool(rng.random() < 0.5),
        grain=rng.random((32, 32), dtype=np.float32),
    )


def mix(under: Pixels, over: Pixels | np.floating | float, cover_hw: Pixels) -> Pixels:
    """`over` laid on `under` where `cover_hw` is 1."""
    cover_hw1 = cover_hw[..., None]
    return under + cover_hw1 * (over - under)


def smooth(x: Pixels, low: float, high: float) -> Pixels:
    """0 below `low`, 1 above `high`, an S between; `low` may exceed `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


Normal = tuple[Pixels, Pixels, Pixels]
Turned = tuple[Pixels, Pixels]
Shaded = tuple[Pixels, Pixels]


def _towards(normal: Normal, direction: Pixels) -> Pixels:
    """Cosine of the angle between surface and direction, 0 where it faces away."""
    u, v, n = normal
    return np.clip(u * direction[0] + v * direction[1] + n * direction[2], 0, 1)


def _diffuse(look: Look, normal: Normal) -> Pixels:
    """Light from the lamp, and a little from the sky."""
    return 0.38 + 0.1 * normal[1] + 0.62 * _towards(normal, look.light)


def _gloss(look: Look, normal: Normal, sharpness: float) -> Pixels:
    """Blinn's highlight."""
    half = look.light + np.array([0, 0, 1], np.float32)
    return _towards(normal, half / np.linalg.norm(half)) ** sharpness


def _solid(albedo: Pixels, light: Pixels, gloss: Pixels) -> Shaded:
    return albedo * light[..., None] + gloss[..., None], np.ones_like(light)


def _metal(look: Look, colour: Pixels, normal: Normal, turned: Turned) -> Shaded:
    """A mirror of bright sky over dark ground, tinted, with an engraved line."""
    mirrored = 2 * normal[2] * normal[1] + 0.25 * look.light[0] * normal[0]
    sky = 0.28 + 0.62 * smooth(mirrored, -0.25, 0.3) - 0.25 * smooth(mirrored, 0.45, 1.0)
    tint = 0.45 * colour + 0.55 * np.float32(colour.mean())
    line = 1 - 0.5 * smooth(np.abs(turned[1]), 0.14, 0.04)
    return _solid(tint * 1.15, sky * line + 0.15 * _diffuse(look, normal), 0.9 * _gloss(look, normal, 60.0))


def _glass(look: Look, colour: Pixels, normal: Normal, turned: Turned) -> Shaded:
    """Clear in the middle, dense at the rim, with light gathered opposite the lamp and a trapped bubble."""
    rim = (1 - normal[2]) ** 2
    gathered = np.clip(-normal[0] * look.light[0] - normal[1] * look.light[1], 0, 1) ** 2 * (1 - rim)
    bubble = smooth(np.hypot(turned[0] - 0.4, turned[1]), 0.2, 0.1)
    gloss = 0.95 * _gloss(look, normal, 90.0) + 0.35 * gathered + 0.25 * bubble
    surface = colour * (1.0 - 0.35 * rim)[..., None] + gloss[..., None]
    return surface, np.clip(0.3 + 0.6 * rim + gloss, 0, 1)


def _rubber(look: Look, colour: Pixels, normal: Normal, turned: Turned) -> Shaded:
    """Matt, with a broad highlight and two pale bands."""
    band = smooth(np.abs(np.abs(turned[1]) - 0.35), 0.14, 0.08)
    albedo = mix(np.broadcast_to(colour, (*band.shape, 3)), 0.5 + 0.5 * colour[::-1], band)
    return _solid(albedo, _diffuse(look, normal), 0.12 * _gloss(look, normal, 6.0))


def _stone(look: Look, colour: Pixels, normal: Normal, turned: Turned) -> Shaded:
    """Dull and speckled."""
    rows, columns = ((16 + 11 * t).astype(int) % 32 for t in turned)
    speck = look.grain[rows, columns]
    dull = 0.35 * colour + 0.65 * np.float32(colour.mean()) * 0.85
    return _solid(dull * (0.65 + 0.6 * speck)[..., None], _diffuse(look, normal), 0.03 * _gloss(look, normal, 4.0))


def _wood(look: Look, colour: Pixels, normal: Normal, turned: Turned) -> Shaded:
    """Rings of grain around a heart that lies off centre."""
    rings = 0.5 + 0.5 * np.sin(16 * np.hypot(turned[0] + 0.55, 0.5 * turned[1] + 0.1))
    warm = 0.6 * colour + 0.4 * np.array([0.72, 0.5, 0.3], np.float32)
    return _solid(warm * (0.62 + 0.42 * rings)[..., None], _diffuse(look, normal), 0.1 * _gloss(look, normal, 14.0))


SHADERS = {"glass": _glass, "metal": _metal, "rubber": _rubber, "stone": _stone, "wood": _wood}
