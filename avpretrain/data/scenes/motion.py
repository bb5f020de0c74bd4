"""Scenes as motion: bodies whose paths decide when something strikes and how fast it rolls.

A class is a pattern in time, never a colour, a material or a pitch: all impact classes strike four times a cycle, all
rolling classes draw on the same speeds, so an average over time tells little. A cycle lasts under a second, so that any
second of it shows the class. Lengths are in image widths, y points up, times are in seconds. K samples of a path.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RATE = 240
"""Samples a second of every path."""

MATERIALS = ("glass", "metal", "rubber", "stone", "wood")
GROUND = 0.2
"""Height at which bodies strike the floor."""
HITS_PER_CYCLE = 4
THICK = 0.07
"""Width of what bodies touch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A moving ball."""

    radius: float
    path_K3: Floats
    """x, y, angle in radians, `RATE` times a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prop:
    """A fixed thing that bodies touch: a line with round ends."""

    start: tuple[float, float]
    end: tuple[float, float]
    width: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One impact."""

    time: float
    strength: float
    """Impact speed, 1 = the hardest."""
    pitch: float
    """Lowest partial, Hz: the smaller the thing struck, the higher."""
    x: float
    y: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Hum:
    """The sound of rolling, `RATE` times a second."""

    pitch_K: Floats
    """Hz; proportional to speed."""
    level_K: Floats
    """0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """What moves, what it touches, and when."""

    bodies: list[Body]
    props: list[Prop] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    hum: Hum | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What every class draws from the same distributions."""

    seconds: float
    cycle: float
    """Seconds until the pattern repeats."""
    phase: float
    """Seconds by which the pattern is shifted."""
    radius: float
    pitch: float
    """Hz of a body of this radius and material."""
    rng: np.random.Generator

    @property
    def times_K(self) -> Floats:
        return np.arange(int(self.seconds * RATE) + 1) / RATE
