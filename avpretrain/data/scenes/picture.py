"""The frames of a scene: shaded balls, their shadows, what they touch and the sparks of impact, before a wall.

Everything is drawn from signed distances in pixels, so edges are smooth at any size. H, W image; h, w a patch of it;
colours are 0 to 1, 3 channels. World lengths are in image widths with y upward, as in `motion`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from avpretrain.data.scenes.materials import SHADERS, Look, Pixels, mix, smooth
from avpretrain.data.scenes.motion import GROUND, RATE, Body, Hit, Motion, Prop

Frame = NDArray[np.uint8]

SPARK_SECONDS = 0.22


class Painter:
    """Draws one scene's frames.

    Args:
        motion: what moves.
        material: of the bodies.
        look: colours and light.
        silent: bodies that drift past and touch nothing.
        size: height and width in pixels.
    """

    def __init__(self, motion: Motion, material: str, look: Look, silent: Sequence[Body], size: int) -> None:
        self.motion, self.look, self.silent, self.size = motion, look, silent, size
        self.shade = SHADERS[material]
        self.background = self._background()

    def frames(self, times: Sequence[float]) -> Iterator[Frame]:
        """uint8 [H, W, 3] at each of `times`, in seconds."""
        for time in times:
            yield self._frame(time)

    def _frame(self, time: float) -> Frame:
        frame = self.background.copy()
        sample = round(time * RATE)
        moving = [(body, body.path_K3[min(sample, len(body.path_K3) - 1)]) for body in self.motion.bodies]
        for body in self.silent:
            x, y, _ = body.path_K3[min(sample, len(body.path_K3) - 1)]
            self._balloon(frame, x, y, body.radius)
        for body, (x, y, _) in moving:
            self._shadows(frame, x, y, body.radius)
        for i, (body, (x, y, angle)) in enumerate(moving):
            self._ball(frame, x, y, angle, body.radius, self.look.balls[i % len(self.look.balls)])
        for hit in self.motion.hits:
            if 0 <= time - hit.time < SPARK_SECONDS:
                self._sparks(frame, hit, time - hit.time)
        frame = np.clip(frame * self.look.brightness, 0, 1)
        out = (frame * 255 + 0.5).astype(np.uint8)
        return np.ascontiguousarray(out[:, ::-1]) if self.look.mirror else out

    # --- geometry ----------------------------------------------------------------------------------------------------

    def _box(
        self, x: float, y: float, half_width: float, half_height: float
    ) -> tuple[tuple[slice, slice], Pixels, Pixels]:
        """The patch around a point: its slices, and each pixel's offset (right, up) from the point in widths."""
        n = self.size
        left, right = max(0, math.floor((x - half_width) * n) - 1), min(n, math.ceil((x + half_width) * n) + 1)
        top = max(0, math.floor((1 - y - half_height) * n) - 1)
        low = min(n, math.ceil((1 - y + half_height) * n) + 1)
        window = slice(top, max(top, low)), slice(left, max(left, right))
        dx_w = ((np.arange(*window[1].indices(n)) + 0.5) / n - x).astype(np.float32)
        dy_h = (1 - y - (np.arange(*window[0].indices(n)) + 0.5) / n).astype(np.float32)
        return window, dx_w[None, :], dy_h[:, None]

    def _edge(self, distance: Pixels) -> Pixels:
        """Cover of pixels whose centre lies `distance` widths outside an edge: antialiased over one pixel."""
        return np.clip(0.5 - distance * self.size, 0, 1)

    # --- what stands still -------------------------------------------------------------------------------------------

    def _background(self) -> Pixels:
        look = self.look
        _, dx, dy = self._box(0.5, 0.5, 0.5, 0.5)
        x, y = dx + 0.5, dy + 0.5
        horizon = GROUND + 0.06
        height_HW = np.broadcast_to(smooth(y, horizon, 1.0), (self.size, self.size))
        wall = mix(np.broadcast_to(look.wall[1], (self.size, self.size, 3)), look.wall[0], height_HW)
        pool = np.exp(-((x - 0.5 - 0.5 * look.light[0]) ** 2 + (y - 0.75) ** 2) / 0.18)
        wall = wall * (0.8 + 0.35 * pool[..., None])
        depth_HW = np.broadcast_to(smooth(y, horizon, 0.0), (self.size, self.size))
        floor = look.floor * (0.72 + 0.4 * depth_HW[..., None]) * (0.9 + 0.2 * pool[..., None])
        skirt = smooth(np.abs(y - horizon), 0.0, 0.03)
        picture = mix(wall, floor, np.broadcast_to(self._edge(y - horizon), height_HW.shape))
        picture = picture * (0.82 + 0.18 * np.broadcast_to(skirt, height_HW.shape)[..., None])
        vignette = 1 - 0.35 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
        return self._with_props((picture * vignette[..., None]).astype(np.float32), x, y)

    def _with_props(self, picture: Pixels, x: Pixels, y: Pixels) -> Pixels:
        """Props with a soft shadow, lit from above; touching ones merge without a seam."""
        if not self.motion.props:
            return picture
        light = self.look.light
        shadow = self._nearest(x + 0.05 * light[0], y + 0.05)
        picture = picture * (1 - 0.35 * smooth(shadow, 0.03, -0.02))[..., None]
        distance = self._nearest(x, y)
        above = self._nearest(x, y + 1.5 / self.size)
        slope = np.clip((above - distance) * self.size / 1.5, -1, 1)
        round_ = np.clip(1 + distance / 0.02, 0, 1)
        lit = 0.85 + 0.35 * slope * round_
        prop = np.clip(self.look.prop * lit[..., None] + 0.12 * smooth(slope * round_, 0.6, 1.0)[..., None], 0, 1)
        return mix(picture, prop, self._edge(distance)).astype(np.float32)

    def _nearest(self, x: Pixels, y: Pixels) -> Pixels:
        """Signed distance to the nearest prop."""
        return np.minimum.reduce([_capsule(prop, x, y) for prop in self.motion.props])

    # --- what moves --------------------------------------------------------------------------------------------------

    def _shadows(self, frame: Pixels, x: float, y: float, radius: float) -> None:
        """On the wall, thrown by the light; on the floor, sharper and darker the lower the body."""
        light = self.look.light
        window, dx, dy = self._box(x - 0.09 * light[0], y - 0.07, radius * 1.5, radius * 1.5)
        wall = 0.28 * smooth(np.hypot(dx, dy) / radius, 1.35, 0.65)
        frame[window] *= (1 - wall)[..., None]
        above = max(0.0, y - radius - GROUND)
        spread = radius * (1 + 1.2 * above)
        window, dx, dy = self._box(x - 0.1 * light[0] * above, GROUND - 0.012, spread * 1.5, spread * 0.45)
        floor = (0.55 / (1 + 5 * above)) * smooth(np.hypot(dx, dy / 0.28) / spread, 1.3, 0.2 - above)
        frame[window] *= (1 - floor)[..., None]

    def _ball(self, frame: Pixels, x: float, y: float, angle: float, radius: float, colour: Pixels) -> None:
        window, dx, dy = self._box(x, y, radius, radius)
        u, v = dx / radius, dy / radius
        square = u * u + v * v
        normal = u, v, np.sqrt(np.clip(1 - square, 0, 1))
        cover = self._edge((np.sqrt(square) - 1) * radius)
        turned = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
        surface, opacity = self.shade(self.look, colour, normal, turned)
        frame[window] = mix(frame[window], np.clip(surface, 0, 1), cover * opacity)

    def _balloon(self, frame: Pixels, x: float, y: float, radius: float) -> None:
        """A pale, soft disc with a string: plainly not one of the balls."""
        string = Prop(start=(0.0, -radius), end=(0.0, -2.4 * radius), width=0.008)
        window, dx, dy = self._box(x, y, radius * 1.1, radius * 2.6)
        dx, dy = np.broadcast_arrays(dx, dy)
        frame[window] = mix(frame[window], self.look.prop * 0.7, 0.7 * self._edge(_capsule(string, dx, dy)))
        away = np.hypot(dx, dy / 1.15)
        tone = (
            0.75
            + 0.25 * (1 - away / radius)
            + 0.2 * smooth(np.hypot(dx + 0.3 * radius, dy - 0.4 * radius), radius / 2, 0.0)
        )
        frame[window] = mix(
            frame[window], np.clip(self.look.prop * tone[..., None], 0, 1), 0.85 * self._edge(away - radius)
        )

    def _sparks(self, frame: Pixels, hit: Hit, age: float) -> None:
        """A flash, a ring that widens and glowing specks that fly up and fall."""
        fade, reach = (1 - age / SPARK_SECONDS) ** 2, 0.05 + 0.13 * hit.strength
        window, dx, dy = self._box(hit.x, hit.y, reach + 0.03, reach + 0.03)
        away, fine = np.hypot(dx, dy), max(0.006, 0.9 / self.size)
        ring = reach * (1 - (1 - age / SPARK_SECONDS) ** 2)
        glow = 0.5 * np.exp(-(((away - ring) / fine) ** 2)) + 0.6 * fade * np.exp(-((away / 0.035) ** 2))
        for i in range(7):
            # The golden angle spreads the specks; the hit's time turns them, so that no two bursts are alike.
            direction = 2.39996 * i + 40 * hit.time
            speed = reach * (0.55 + 0.45 * math.sin(5.0 * i + 11 * hit.time) ** 2) / SPARK_SECONDS * 1.6
            speck_x = speed * math.cos(direction) * age
            speck_y = speed * math.sin(direction) * age - 0.9 * age * age
            glow = glow + 1.2 * np.exp(-(((dx - speck_x) ** 2 + (dy - speck_y) ** 2) / (1.2 * fine) ** 2))
        strength = np.clip(fade * glow * (0.4 + 0.6 * hit.strength), 0, 1).astype(np.float32)
        frame[window] = mix(frame[window], np.array([1.0, 0.95, 0.8], np.float32), strength)


def _capsule(prop: Prop, x: Pixels, y: Pixels) -> Pixels:
    """Signed distance to a line with round ends (Quilez)."""
    ax, ay = prop.start
    bx, by = prop.end[0] - ax, prop.end[1] - ay
    along = np.clip(((x - ax) * bx + (y - ay) * by) / (bx * bx + by * by), 0, 1)
    return np.hypot(x - ax - along * bx, y - ay - along * by) - prop.width / 2
