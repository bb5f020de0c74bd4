"""Synthetic scenes as mp4 files, with labels: audio follows from what is seen; on one machine a seed fixes every byte.

Every clip is a pure function of (settings, index), so a data set can grow without changing the clips it has, and a run
that was interrupted resumes where it stopped. Class, material, size, tempo and everything that distracts from them are
drawn independently of each other.
"""

from __future__ import annotations

import csv
import itertools
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import av.codec.context
import numpy as np
from numpy.typing import NDArray

from avpretrain import __version__
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import atomic_path, read_json, write_json
from avpretrain.data.scenes.picture import Frame
from avpretrain.data.scenes.scene import CLIPS_DIR, SAMPLE_RATE, SceneSettings, describe, scene_frames, scene_sound
from avpretrain.data.write.encode import REPEATABLE

__all__ = ["make_scenes", "write_mp4"]

SETTINGS_NAME, LABELS_NAME = "synth.json", "labels.csv"


def write_mp4(path: Path, frames: Iterable[Frame], fps: int, sound_S: NDArray[np.float32], sample_rate: int) -> None:
    """H.264 (yuv420p, a keyframe a second) and AAC mono; the same arguments and codec versions give the same bytes."""
    frames = iter(frames)
    first = next(frames)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "20", **REPEATABLE})
        video.height, video.width, video.pix_fmt = *first.shape[:2], "yuv420p"
        video.gop_size, video.max_b_frames = fps, 0
        audio = container.add_stream(
            "aac", rate=sample_rate, layout="mono", bit_rate=64_000, options={"aac_coder": "fast"}
        )
        for stream in (video, audio):
            stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for picture in itertools.chain([first], frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(video.encode(frame.reformat(format="yuv420p", threads=1)))  # several would race for the bytes
        container.mux(video.encode())
        waveform = av.AudioFrame.from_ndarray(sound_S[None], format="fltp", layout="mono")
        waveform.sample_rate, waveform.pts, waveform.time_base = (
            sample_rate,
            0,
            Fraction(1, sample_rate),
        )  # else it lags
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

    Resumes what an earlier call with the same settings left in `out`. `workers` processes render; `on_clip` is
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
        raise UserError("a worker died, perhaps for lack of memory; run again with fewer --workers to resume") from None
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
        existing = read_json(out / SETTINGS_NAME, "record of synthetic scenes")
        for part in ("settings", "versions"):
            if existing.get(part) != record[part]:
                raise UserError(f"{out} was made with other {part} (see {out / SETTINGS_NAME}); {advice}")
        if existing["clips"] > clips:
            raise UserError(f"{out} already holds {existing['clips']} clips, more than {clips}; {advice}")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no {SETTINGS_NAME}; {advice}")
    for stale in out.glob(f"{CLIPS_DIR}/.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    write_json(out / SETTINGS_NAME, record)
