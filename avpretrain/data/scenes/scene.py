"""One synthetic clip as a pure function of (settings, index): its class, and all that distracts from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avpretrain.core.errors import UsageError
from avpretrain.data.scenes import impacts, rolling
from avpretrain.data.scenes.materials import random_look
from avpretrain.data.scenes.motion import MATERIALS, RATE, Body, Motion, Setting
from avpretrain.data.scenes.picture import Frame, Painter
from avpretrain.data.scenes.sound import OFFSCREEN, render_sound

SAMPLE_RATE = 16_000
CLIPS_DIR = "clips"

CLASSES: dict[str, Callable[[Setting], Motion]] = {
    "bounce": impacts.bounce,
    "pump": impacts.pump,
    "dribble": impacts.dribble,
    "gallop": impacts.gallop,
    "collide": impacts.collide,
    "climb": impacts.climb,
    "descend": impacts.descend,
    "pingpong": impacts.pingpong,
    "speedup": rolling.speedup,
    "slowdown": rolling.slowdown,
    "swing": rolling.swing,
    "rattle": rolling.rattle,
}

_PITCH = {"glass": 1250.0, "metal": 900.0, "rubber": 330.0, "stone": 620.0, "wood": 470.0}
"""Lowest partial in Hz of a body of middle size."""
_RADIUS = (0.08, 0.12)
_CYCLE = (0.55, 0.75)
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSettings:
    """What, besides its index, decides a clip's bytes."""

    seed: int = 0
    seconds: float = 4.0
    size: int = 128
    """Height and width in pixels."""
    fps: int = 12
    val_share: float = 0.1
    test_share: float = 0.1
    """Shares of each class in the val and test splits."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"--seed must not be negative, got {self.seed}")
        if not 1 <= self.seconds <= 60:
            raise UsageError(f"--seconds must lie between 1 (a whole pattern) and 60, got {self.seconds}")
        if self.size % 2 or not 32 <= self.size <= 1024:
            raise UsageError(f"--size must be an even number between 32 and 1024, got {self.size}")
        if not 1 <= self.fps <= 60:
            raise UsageError(f"--fps must lie between 1 and 60, got {self.fps}")
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share >= 1:
            raise UsageError("--val-share and --test-share must not be negative and must leave something to train on")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One clip before it is rendered; the text fields are its labels."""

    index: int
    split: str
    name: str
    """Its class."""
    material: str
    size: str
    tempo: str
    offscreen: str
    """Kind of sound whose source is not in view."""
    silent: list[Body]
    """Bodies that move without a sound."""
    motion: Motion

    @property
    def file(self) -> str:
        return f"{CLIPS_DIR}/{self.index:06d}.mp4"

    @property
    def row(self) -> dict[str, str]:
        """Its line of labels.csv."""
        return {
            "file": self.file, "split": self.split, "class": self.name, "material": self.material, "size": self.size,
            "tempo": self.tempo, "bodies": str(len(self.motion.bodies)), "silent": str(len(self.silent)),
            "offscreen": self.offscreen,
        }  # fmt: skip


def _rng(settings: SceneSettings, index: int, stream: str) -> np.random.Generator:
    return np.random.default_rng([settings.seed, index, *stream.encode()])


def _third(value: float, bounds: tuple[float, float], names: tuple[str, str, str]) -> str:
    return names[min(2, int(3 * (value - bounds[0]) / (bounds[1] - bounds[0])))]


def class_and_split(settings: SceneSettings, index: int) -> tuple[str, str]:
    """Each run of len(CLASSES) clips holds every class once; a golden-ratio sequence spreads splits over each class."""
    block, place = divmod(index, len(CLASSES))
    number = int(_rng(settings, block, "order").permutation(len(CLASSES))[place])
    share = (block * _GOLDEN + number / len(CLASSES)) % 1
    split = "test" if share < settings.test_share else "train"
    if settings.test_share <= share < settings.test_share + settings.val_share:
        split = "val"
    return list(CLASSES)[number], split


def describe(settings: SceneSettings, index: int) -> Scene:
    """Draws the scene of clip `index`."""
    name, split = class_and_split(settings, index)
    rng = _rng(settings, index, "scene")
    material = str(rng.choice(MATERIALS))
    radius, cycle = rng.uniform(*_RADIUS), rng.uniform(*_CYCLE)
    pitch = _PITCH[material] * (sum(_RADIUS) / 2 / radius) * 2 ** rng.uniform(-0.35, 0.35)
    offscreen = str(rng.choice(OFFSCREEN, p=[0.55, 0.15, 0.15, 0.15]))
    silent = [_balloon(settings.seconds, rng) for _ in range(rng.choice(3, p=[0.5, 0.3, 0.2]))]
    setting = Setting(
        seconds=settings.seconds, cycle=cycle, phase=rng.uniform(0, cycle), radius=radius, pitch=pitch, rng=rng
    )
    return Scene(
        index=index,
        split=split,
        name=name,
        material=material,
        size=_third(radius, _RADIUS, ("small", "medium", "large")),
        tempo=_third(cycle, _CYCLE, ("fast", "medium", "slow")),
        offscreen=offscreen,
        silent=silent,
        motion=CLASSES[name](setting),
    )


def _balloon(seconds: float, rng: np.random.Generator) -> Body:
    """Drifts across the upper half, bobbing."""
    t_K = np.arange(int(seconds * RATE) + 1) / RATE
    x_K = rng.uniform(0, 1) + rng.uniform(-0.2, 0.2) * t_K
    y_K = rng.uniform(0.6, 0.9) + 0.04 * np.sin(rng.uniform(1, 3) * t_K + rng.uniform(0, 6))
    return Body(radius=rng.uniform(0.04, 0.08), path_K3=np.column_stack([x_K, y_K, 0 * t_K]))


def scene_sound(settings: SceneSettings, scene: Scene) -> NDArray[np.float32]:
    """Waveform [S] at `SAMPLE_RATE`."""
    rng = _rng(settings, scene.index, "sound")
    return render_sound(scene.motion, scene.material, scene.offscreen, settings.seconds, SAMPLE_RATE, rng)


def scene_frames(settings: SceneSettings, scene: Scene) -> Iterator[Frame]:
    """uint8 frames [H, W, 3] at `settings.fps`."""
    look = random_look(_rng(settings, scene.index, "look"))
    painter = Painter(scene.motion, scene.material, look, scene.silent, settings.size)
    return painter.frames([i / settings.fps for i in range(round(settings.seconds * settings.fps))])
