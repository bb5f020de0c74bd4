"""Classes of motion that roll: the pitch follows the speed, which differs in its course. K samples of a path."""

from __future__ import annotations

import itertools

import numpy as np

from avpretrain.data.scenes.motion import GROUND, THICK, Body, Floats, Hum, Motion, Prop, Setting


def _hum(setting: Setting, speed_K: Floats, level_K: Floats) -> Hum:
    """Rolling at relative speed 0 to 1: the pitch sweeps 1.6 octaves around the body's own."""
    return Hum(pitch_K=setting.pitch * 3.0 ** (speed_K - 0.5), level_K=level_K)


def _turn(setting: Setting) -> Floats:
    """Position within the cycle, 0 to 1, at each sample."""
    return ((setting.times_K + setting.phase) / setting.cycle) % 1.0


def _slope(setting: Setting, way_K: Floats, speed_K: Floats) -> Motion:
    """One body after another crosses a sloping track; `way_K` runs from 0 (top) to 1 (bottom)."""
    turn_K = _turn(setting)
    rise = setting.rng.uniform(0.22, 0.34)
    top, bottom = np.array([-0.1, GROUND + 0.04 + rise]), np.array([1.1, GROUND + 0.04])
    line = bottom - top
    normal = np.array([-line[1], line[0]]) / np.hypot(*line)
    path_K2 = top + way_K[:, None] * line + normal * setting.radius
    level_K = np.clip(np.minimum(turn_K, 1 - turn_K) / 0.06, 0, 1)
    under = top - normal * THICK / 2, bottom - normal * THICK / 2
    track = Prop(start=(under[0][0], under[0][1]), end=(under[1][0], under[1][1]), width=THICK)
    angle_K = -way_K * np.hypot(*line) / setting.radius
    body = Body(radius=setting.radius, path_K3=np.column_stack([path_K2, angle_K]))
    return Motion(bodies=[body], props=[track], hum=_hum(setting, speed_K, level_K))


def speedup(setting: Setting) -> Motion:
    """Rolls down a slope, faster and faster: the pitch glides up."""
    turn_K = _turn(setting)
    return _slope(setting, 0.3 * turn_K + 0.7 * turn_K**2, turn_K)


def slowdown(setting: Setting) -> Motion:
    """Rolls up a slope, slower and slower: the pitch glides down."""
    back_K = 1 - _turn(setting)
    return _slope(setting, 0.3 * back_K + 0.7 * back_K**2, back_K)


def swing(setting: Setting) -> Motion:
    """Rolls to and fro in a bowl: the pitch waves up and down."""
    rng, turn_K = setting.rng, _turn(setting)
    bend, reach = rng.uniform(0.45, 0.6), rng.uniform(0.75, 1.0)
    centre = np.array([rng.uniform(0.45, 0.55), GROUND + 0.02 + bend])
    swing_K = reach * np.cos(2 * np.pi * turn_K)
    inner = bend - setting.radius
    path_K2 = centre + inner * np.column_stack([np.sin(swing_K), -np.cos(swing_K)])
    angles = np.linspace(-reach - 0.25, reach + 0.25, 17)
    rim = centre + (bend + THICK / 2) * np.column_stack([np.sin(angles), -np.cos(angles)])
    props = [Prop(start=(a[0], a[1]), end=(b[0], b[1]), width=THICK) for a, b in itertools.pairwise(rim)]
    body = Body(radius=setting.radius, path_K3=np.column_stack([path_K2, -swing_K * bend / setting.radius]))
    speed_K = np.abs(np.sin(2 * np.pi * turn_K))
    return Motion(bodies=[body], props=props, hum=_hum(setting, speed_K, np.ones_like(turn_K)))


def rattle(setting: Setting) -> Motion:
    """Rolls at an even speed over a washboard: a steady pitch that flutters."""
    rng, turn_K = setting.rng, _turn(setting)
    ridges = int(rng.integers(9, 13))
    floor, spacing = GROUND + THICK / 2, 1.2 / ridges
    ride_K = np.abs(np.sin(np.pi * turn_K * ridges))
    y_K = floor + setting.radius + 0.012 * (1 - ride_K)
    path_K3 = np.column_stack([1.2 * turn_K - 0.1, y_K, -1.2 * turn_K / setting.radius])
    starts = np.arange(ridges + 1) * spacing - 0.1
    props = [Prop(start=(x, floor - 0.04), end=(x, floor - 0.025), width=0.05) for x in starts]
    props.append(Prop(start=(-0.2, floor - THICK), end=(1.2, floor - THICK), width=THICK))
    level_K = np.clip(np.minimum(turn_K, 1 - turn_K) / 0.06, 0, 1) * (0.04 + 0.96 * (1 - ride_K) ** 2)
    speed = rng.uniform(0.1, 0.9)
    body = Body(radius=setting.radius, path_K3=path_K3)
    return Motion(bodies=[body], props=props, hum=_hum(setting, np.full_like(turn_K, speed), level_K))
