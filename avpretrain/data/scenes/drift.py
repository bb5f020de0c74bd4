"""Elastic balls in a box without gravity, from strike to strike: exact, with no time step. N balls, J moments."""

from __future__ import annotations

import itertools
import math

import numpy as np

from avpretrain.data.scenes.motion import Floats

Strike = tuple[float, int, float, float, float]
"""Time, body that sounds, speed, x, y."""


def drift(
    rng: np.random.Generator, places_N2: Floats, radii_N: Floats, low: Floats, high: Floats, count: int
) -> tuple[Floats, Floats, list[Strike]]:
    """Elastic bodies without gravity, from strike to strike until the one after `count`.

    Returns the strikes' times [J = count + 2, with the start and the end], where the bodies were [J, N, 2], and `count`
    strikes.
    """
    at, heading_N = places_N2.copy(), rng.uniform(0, 2 * np.pi, len(radii_N))
    pace_N1 = rng.uniform(0.6, 1.0, (len(radii_N), 1))
    velocity = pace_N1 * np.column_stack([np.cos(heading_N), np.sin(heading_N)])
    time, times, places, strikes = 0.0, [0.0], [at.copy()], list[Strike]()
    for _ in range(count + 1):
        wait, first, second = _next_strike(at, velocity, radii_N, low, high)
        time, at = time + wait, at + wait * velocity
        if second < 0:
            axis = second + 2
            away = np.eye(2)[axis] * np.sign(velocity[first, axis])
            speed = abs(velocity[first, axis])
            velocity[first, axis] *= -1
        else:
            away = (at[second] - at[first]) / np.hypot(*(at[second] - at[first]))
            speed = (velocity[first] - velocity[second]) @ away
            mass_first, mass_second = radii_N[first] ** 2, radii_N[second] ** 2
            impulse = 2 * speed / (mass_first + mass_second) * away
            velocity[first] -= mass_second * impulse
            velocity[second] += mass_first * impulse
        touch = at[first] + radii_N[first] * away
        strikes.append((time, first, float(speed), float(touch[0]), float(touch[1])))
        times.append(time)
        places.append(at.copy())
    return np.array(times), np.array(places), strikes[:-1]


def _next_strike(at: Floats, velocity: Floats, radii_N: Floats, low: Floats, high: Floats) -> tuple[float, int, int]:
    """Time until the next strike, the body, and the other body, or -2 for a side wall and -1 for floor or ceiling."""
    edge_N1 = radii_N[:, None]
    gap = np.where(velocity > 0, high - edge_N1 - at, low + edge_N1 - at)
    walls = np.maximum(0, gap / velocity)
    body, axis = np.unravel_index(int(np.argmin(walls)), walls.shape)
    best = float(walls[body, axis]), int(body), int(axis) - 2
    for a, b in itertools.combinations(range(len(radii_N)), 2):
        apart, drift = at[b] - at[a], velocity[b] - velocity[a]
        closing, pace = float(apart @ drift), float(drift @ drift)
        root = closing**2 - pace * (float(apart @ apart) - (radii_N[a] + radii_N[b]) ** 2)
        if closing < 0 < root:
            best = min(best, (max(0.0, (-closing - math.sqrt(root)) / pace), a, b))
    return best
