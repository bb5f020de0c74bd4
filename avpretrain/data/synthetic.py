"""Synthetic scenes as mp4 files: sound that follows from what is seen, with labels; the same seed gives the same bytes.

Every clip is a pure function of (settings, index), so a data set can grow without changing the clips it has, and a run
that was interrupted goes on where it stopped. Class, material, size, tempo and everything that distracts from them are
drawn independently of each other.
"""

from __future__ import annotations

import csv
import itertools
import math
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import av
import av.codec.context
import numpy as np
from numpy.typing import NDArray

from avpretrain import __version__
from avpretrain.data.scenes import impacts, rolling
from avpretrain.data.scenes.materials import random_look
from avpretrain.data.scenes.motion import MATERIALS, RATE, Body, Motion, Setting
from avpretrain.data.scenes.picture import Frame, Painter
from avpretrain.data.scenes.sound import OFFSCREEN, render_sound
from avpretrain.errors import UsageError, UserError
from avpretrain.files import atomic_path, read_json, write_json

SAMPLE_RATE = 16_000
SETTINGS_NAME, LABELS_NAME, CLIPS_DIR = "synth.json", "labels.csv", "clips"

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
_RADIUS = (0.065, 0.1)
_CYCLE = (0.85, 1.15)
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSettings:
    """What, beside its index, decides a clip's bytes."""

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
    """Kind of sound whose source is not in the picture."""
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


def _class_and_split(settings: SceneSettings, index: int) -> tuple[str, str]:
    """Each run of len(CLASSES) clips holds every class once; a golden-ratio sequence spreads splits over each class."""
    block, place = divmod(index, len(CLASSES))
    number = int(_rng(settings, block, "order").permutation(len(CLASSES))[place])
    share = (block * len(CLASSES) + number) * _GOLDEN % 1
    split = "test" if share < settings.test_share else "train"
    if settings.test_share <= share < settings.test_share + settings.val_share:
        split = "val"
    return list(CLASSES)[number], split


def describe(settings: SceneSettings, index: int) -> Scene:
    """Draws the scene of clip `index`."""
    name, split = _class_and_split(settings, index)
    rng = _rng(settings, index, "scene")
    material = str(rng.choice(MATERIALS))
    radius, cycle = rng.uniform(*_RADIUS), rng.uniform(*_CYCLE)
    pitch = _PITCH[material] * (sum(_RADIUS) / 2 / radius) * 2 ** rng.uniform(-0.35, 0.35)
    offscreen = str(rng.choice(OFFSCREEN, p=[0.4, 0.2, 0.2, 0.2]))
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


def write_mp4(path: Path, frames: Iterable[Frame], fps: int, sound_S: NDArray[np.float32], sample_rate: int) -> None:
    """H.264 (yuv420p, a keyframe a second) and AAC mono; the same arguments and codec versions give the same bytes."""
    frames = iter(frames)
    first = next(frames)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "20", "threads": "1"})
        video.height, video.width, video.pix_fmt = *first.shape[:2], "yuv420p"
        video.gop_size, video.max_b_frames = fps, 0
        audio = container.add_stream(
            "aac", rate=sample_rate, layout="mono", bit_rate=64_000, options={"aac_coder": "fast"}
        )
        for stream in (video, audio):
            stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for picture in itertools.chain([first], frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        waveform = av.AudioFrame.from_ndarray(sound_S[None], format="fltp", layout="mono")
        waveform.sample_rate = sample_rate
        container.mux(audio.encode(waveform))
        container.mux(audio.encode())


def _make_clip(out: Path, settings: SceneSettings, index: int) -> dict[str, str]:
    """Renders clip `index` unless its file is there; returns its labels."""
    scene = describe(settings, index)
    path = out / scene.file
    if not path.exists():
        write_mp4(path, scene_frames(settings, scene), settings.fps, scene_sound(settings, scene), SAMPLE_RATE)
    return scene.row


def make_scenes(
    out: Path,
    clips: int,
    settings: SceneSettings,
    workers: int = 1,
    on_clip: Callable[[], None] = lambda: None,
) -> list[dict[str, str]]:
    """Writes `out`/clips/*.mp4, then labels.csv, and returns the rows of that table.

    Goes on with what an earlier call with the same settings left in `out`. `workers` processes render; `on_clip` is
    called after each clip.

    Raises:
        UsageError: `clips` or `workers` is not positive.
        UserError: `out` holds anything else, or more clips than asked for, or a worker died.
    """
    if min(clips, workers) < 1:
        raise UsageError(f"--clips and --workers must be at least 1, got {clips} and {workers}")
    _claim(out, clips, settings)
    make, rows = partial(_make_clip, out, settings), []
    try:
        for row in _mapped(make, range(clips), workers):
            rows.append(row)
            on_clip()
    except BrokenProcessPool:
        raise UserError("a worker died, perhaps for lack of memory; run again with fewer --workers to go on") from None
    with atomic_path(out / LABELS_NAME) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def _mapped(make: Callable[[int], dict[str, str]], indices: range, workers: int) -> Iterator[dict[str, str]]:
    """`make` of each index, in order."""
    if workers == 1:
        yield from map(make, indices)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts) as pool:
        yield from pool.map(make, indices, chunksize=4)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole group; only the parent answers it, and lets clips under way finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _claim(out: Path, clips: int, settings: SceneSettings) -> None:
    """Makes `out` ours, or checks that it already is.

    Raises:
        UserError: it can't be.
    """
    codecs = {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
    versions = {"avpretrain": __version__, "numpy": np.__version__, "av": av.__version__, **codecs}
    record = {"settings": asdict(settings), "versions": versions, "clips": clips}
    advice = "choose another folder"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; {advice}")
    if (out / SETTINGS_NAME).exists():
        found = read_json(out / SETTINGS_NAME, "record of synthetic scenes")
        for part in ("settings", "versions"):
            if found.get(part) != record[part]:
                raise UserError(f"{out} was made with other {part} (see {out / SETTINGS_NAME}); {advice}")
        if found["clips"] > clips:
            raise UserError(f"{out} already holds {found['clips']} clips, more than {clips}; {advice}")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no {SETTINGS_NAME}; {advice}")
    for stale in out.glob(f"{CLIPS_DIR}/.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    write_json(out / SETTINGS_NAME, record)
