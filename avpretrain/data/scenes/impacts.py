"""Classes of motion that strike: each strikes four times a cycle, and differs in when and at which pitch."""

from __future__ import annotations

import itertools

import numpy as np

from avpretrain.data.scenes.drift import drift
from avpretrain.data.scenes.motion import GROUND, HITS_PER_CYCLE, THICK, Body, Floats, Hit, Motion, Prop, Setting


def _hit_times(setting: Setting, fractions: list[float]) -> Floats:
    """Strikes at `fractions` of each cycle, from before the clip's start until after its end."""
    cycles = np.arange(-2, int(setting.seconds / setting.cycle) + 3)
    return ((cycles[:, None] + np.asarray(fractions)) * setting.cycle - setting.phase).reshape(-1)


def _hop(setting: Setting, times: Floats, places: Floats, gravity: float) -> Floats:
    """Free flight between strikes at `times`, touching `places` [len(times), 2]; returns a path [K, 3]."""
    t_K = setting.times_K
    i_K = np.searchsorted(times, t_K, side="right") - 1
    before_K, after_K = t_K - times[i_K], times[i_K + 1] - t_K
    share_K1 = (before_K / (before_K + after_K))[:, None]
    path_K2 = places[i_K] * (1 - share_K1) + places[i_K + 1] * share_K1
    path_K2[:, 1] += gravity / 2 * before_K * after_K
    spin = setting.rng.uniform(-6, 6)
    return np.column_stack([path_K2, spin * t_K])


def _gravity(height: float, longest: float) -> float:
    """Fall acceleration at which a flight of `longest` seconds rises by `height`."""
    return 8 * height / longest**2


def _bouncer(setting: Setting, x: float, radius: float, times: Floats, height: float) -> Body:
    places = np.tile([x, GROUND + radius], (len(times), 1))
    path = _hop(setting, times, places, _gravity(height, float(np.diff(times).max())))
    return Body(radius=radius, path_K3=path)


def _column(setting: Setting, fractions: list[float], strengths: list[float]) -> Motion:
    """One body that bounces on one spot."""
    x, height = setting.rng.uniform(0.25, 0.75), setting.rng.uniform(0.42, 0.58)
    times = _hit_times(setting, fractions)
    hits = [
        Hit(time=t, strength=s, pitch=setting.pitch, x=x, y=GROUND)
        for t, s in zip(times, itertools.cycle(strengths), strict=False)
    ]
    pad = Prop(start=(x - 0.11, GROUND - THICK / 2), end=(x + 0.11, GROUND - THICK / 2), width=THICK)
    return Motion(bodies=[_bouncer(setting, x, setting.radius, times, height)], props=[pad], hits=hits)


def _intervals(setting: Setting) -> list[float]:
    """Four intervals, as shares of a cycle, each a fixed ratio of the one before."""
    ratio = setting.rng.uniform(0.6, 0.7)
    gaps = ratio ** np.arange(HITS_PER_CYCLE)
    return [float(gap) for gap in gaps / gaps.sum()]


def _hops(setting: Setting, gaps: list[float]) -> Motion:
    """Bounces at uneven intervals; each strike is as hard as the flight after it is long."""
    return _column(setting, [0.0, *itertools.accumulate(gaps[:-1])], [gap / max(gaps) for gap in gaps])


def bounce(setting: Setting) -> Motion:
    """Dropped, it bounces lower and faster until it is thrown up again."""
    return _hops(setting, _intervals(setting))


def pump(setting: Setting) -> Motion:
    """Kicked higher and higher, then caught: `bounce` backwards."""
    return _hops(setting, _intervals(setting)[::-1])


def dribble(setting: Setting) -> Motion:
    """Even bounces."""
    return _column(setting, [0.0, 0.25, 0.5, 0.75], [0.8])


def gallop(setting: Setting) -> Motion:
    """Two bodies, one shortly after the other: short, long, short, long."""
    rng, lag = setting.rng, setting.rng.uniform(0.11, 0.15)
    height, middle = rng.uniform(0.36, 0.5), rng.uniform(0.42, 0.58)
    bodies, hits, props = [], [], []
    for side, start, size in ((-1, 0.0, 1.0), (1, lag, rng.uniform(0.8, 1.0))):
        times = _hit_times(setting, [start, start + 0.5])
        x = middle + side * rng.uniform(0.15, 0.22)
        bodies.append(_bouncer(setting, x, setting.radius * size, times, height))
        hits += [Hit(time=t, strength=0.8, pitch=setting.pitch / size, x=x, y=GROUND) for t in times]
        props.append(Prop(start=(x - 0.09, GROUND - THICK / 2), end=(x + 0.09, GROUND - THICK / 2), width=THICK))
    return Motion(bodies=bodies, props=props, hits=hits)


def _stairs(setting: Setting, order: list[int]) -> Motion:
    """One body that hops along four bars; the higher the bar, the shorter and the higher its pitch."""
    rng, steps = setting.rng, np.arange(HITS_PER_CYCLE)
    interval, top = rng.uniform(1.3, 1.42), rng.uniform(0.24, 0.34)
    x_S, y_S = 0.2 + 0.2 * steps, GROUND + 0.04 + top * steps / (HITS_PER_CYCLE - 1)
    props = [
        Prop(start=(x - half, y - THICK / 2), end=(x + half, y - THICK / 2), width=THICK)
        for x, y, half in zip(x_S, y_S, 0.075 - 0.012 * steps, strict=True)
    ]
    times = _hit_times(setting, [0.0, 0.25, 0.5, 0.75])
    bars = np.resize(order, len(times))
    places = np.column_stack([x_S[bars], y_S[bars] + setting.radius])
    pitch_S = setting.pitch * interval ** (steps - 1.5)
    hits = [
        Hit(time=t, strength=0.8, pitch=pitch_S[bar], x=x_S[bar], y=y_S[bar])
        for t, bar in zip(times, bars, strict=True)
    ]
    path = _hop(setting, times, places, _gravity(rng.uniform(0.2, 0.28), setting.cycle / HITS_PER_CYCLE))
    return Motion(bodies=[Body(radius=setting.radius, path_K3=path)], props=props, hits=hits)


def climb(setting: Setting) -> Motion:
    """Up the stairs, each bar higher in pitch."""
    return _stairs(setting, [0, 1, 2, 3])


def descend(setting: Setting) -> Motion:
    """Down the stairs, each bar lower in pitch."""
    return _stairs(setting, [3, 2, 1, 0])


def pingpong(setting: Setting) -> Motion:
    """To and fro between a large and a small bat: low, high, low, high."""
    rng = setting.rng
    ratio, y, gap = rng.uniform(1.7, 2.2), rng.uniform(0.42, 0.55), rng.uniform(0.3, 0.38)
    times = _hit_times(setting, [0.0, 0.25, 0.5, 0.75])
    side = np.resize([-1, 1], len(times))
    places = np.column_stack([0.5 + side * (gap - setting.radius), np.full(len(times), y)])
    path = _hop(setting, times, places, _gravity(0.06, setting.cycle / HITS_PER_CYCLE))
    hits = [
        Hit(time=t, strength=0.8, pitch=setting.pitch * ratio ** (s / 2), x=0.5 + s * gap, y=y)
        for t, s in zip(times, side, strict=True)
    ]
    props = [
        Prop(start=(0.5 + s * (gap + THICK / 2), y - half), end=(0.5 + s * (gap + THICK / 2), y + half), width=THICK)
        for s, half in ((-1, 0.05 * ratio), (1, 0.05))
    ]
    return Motion(bodies=[Body(radius=setting.radius, path_K3=path)], props=props, hits=hits)


def collide(setting: Setting) -> Motion:
    """Several bodies adrift in a box, striking each other and the walls at irregular times."""
    rng = setting.rng
    count = int(rng.integers(3, 5))
    radii_N = setting.radius * rng.uniform(0.7, 1.1, count)
    low, high = np.array([0.08, GROUND]), np.array([0.92, 0.85])
    corners = np.array([[0.25, 0.35], [0.72, 0.38], [0.28, 0.7], [0.74, 0.68]])[:count]
    wanted = max(2, round(HITS_PER_CYCLE / setting.cycle * setting.seconds))
    knots_J, places_JN2, strikes = drift(rng, corners, radii_N, low, high, wanted)
    # Speed decides when bodies strike but not which: play it at the other classes' rate of strikes.
    scale = setting.seconds / knots_J[-1]
    times_K, spin_N = setting.times_K, rng.uniform(-3, 3, count)
    bodies = []
    for n in range(count):
        x_K, y_K = (np.interp(times_K, knots_J * scale, places_JN2[:, n, axis]) for axis in (0, 1))
        bodies.append(Body(radius=float(radii_N[n]), path_K3=np.column_stack([x_K, y_K, spin_N[n] * times_K])))
    hits = [
        Hit(
            time=time * scale,
            strength=float(np.clip(speed, 0.3, 1)),
            pitch=setting.pitch * setting.radius / float(radii_N[n]),
            x=x,
            y=y,
        )
        for time, n, speed, x, y in strikes
    ]
    (left, floor), (right, top) = low - THICK / 2, high + THICK / 2
    box = [(left, top), (left, floor), (right, floor), (right, top), (left, top)]
    walls = [Prop(start=start, end=end, width=THICK) for start, end in itertools.pairwise(box)]
    return Motion(bodies=bodies, props=walls, hits=hits)
