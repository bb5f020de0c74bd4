"""Measures decord against PyAV, in speed and on damaged clips, and writes it as JSON.

    python docs/studies/compare_decoders.py VIDEOS [--out docs/results/decoders.json]

Reads every video in VIDEOS; takes some seconds for each.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from avpretrain.core.files import write_json
from avpretrain.core.provenance import environment
from avpretrain.data.choices import Limits
from avpretrain.data.container import DecodeError
from avpretrain.data.decode import decode_video
from avpretrain.data.sources import find_items
from avpretrain.data.write.settings import TranscodeConfig
from avpretrain.data.write.transcode import cut
from avpretrain.data.write.workers import Beat, TaskError, run_contained

Backend = Literal["decord", "pyav"]
BACKENDS: tuple[Backend, ...] = ("decord", "pyav")
TIMES = tuple(i / 2 for i in range(8))


@dataclass(frozen=True, slots=True)
class Case:
    """A clip for one of the decoders."""

    backend: Backend
    kind: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.backend}, {self.kind}"


def compare_decoders(paths: Sequence[Path], timeout: float = 20.0) -> dict[str, Any]:
    """Decodes 8 frames of every clip of `paths` with each decoder, transcoded and copied, then damaged.

    Args:
        paths: videos.
        timeout: seconds after which a damaged clip counts as a hang.

    Returns:
        `cpu_ms`: median processor time a clip, in milliseconds; `damaged`: how often each gave frames, an error,
        a crash or a hang on each kind of damage.
    """
    clips = {
        mode: [c.video for p in paths for c in cut(p, None, "video", TranscodeConfig(transcode=mode), Limits())]
        for mode in ("train", "copy")
    }
    speed = {b: {mode: _median_ms(videos, b) for mode, videos in clips.items()} for b in BACKENDS}
    rng = np.random.default_rng(0)
    broken = [pair for videos in clips.values() for video in videos for pair in damaged(video, rng)]
    cases = [Case(backend, kind, data) for backend in BACKENDS for kind, data in broken]
    counts = {f"{backend} {kind}": Counter[str]() for backend in BACKENDS for kind, _ in broken}
    for outcome in run_contained(_decode, cases, 1, timeout):
        counts[f"{outcome.task.backend} {outcome.task.kind}"][_name(outcome.failure)] += 1
    found = {name: dict(sorted(count.items())) for name, count in counts.items()}
    return {"cpu_ms": speed, "damaged": found, "clips": len(clips["train"]), "environment": environment()}


def damaged(video: bytes, rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """A clip damaged in several ways: (kind, bytes)."""
    bad = [("cut off", video[: int(len(video) * share)]) for share in rng.uniform(0.3, 0.98, 3)]
    for kind, reach in (("bits flipped", len(video)), ("bits flipped in the index", 3000)):
        for _ in range(3):
            changed = bytearray(video)
            for place in rng.integers(1, reach, 8):  # counted from the end, where mp4 keeps its index
                changed[-int(place)] ^= 1 << int(rng.integers(8))
            bad.append((kind, bytes(changed)))
    place = video.find(b"stts") + 12
    bad.append(("frames overstated", video[:place] + (5000).to_bytes(4, "big") + video[place + 4 :]))
    return bad


def _decode(case: Case, beat: Beat) -> None:
    try:
        decode_video(case.data, TIMES, 0, case.backend)
    except DecodeError as error:
        raise TaskError(f"error: {error}") from None


def _name(failure: str | None) -> str:
    if failure is None:
        return "frames"
    return next((n for start, n in (("error: ", "error"), ("made no", "hang")) if failure.startswith(start)), "crash")


def _median_ms(videos: Sequence[bytes], backend: Backend, repeats: int = 5) -> float:
    seconds = []
    for video in list(videos) * repeats:
        start = time.process_time()
        decode_video(video, TIMES, 0, backend)
        seconds.append(time.process_time() - start)
    return 1000 * statistics.median(seconds)


def main(videos: tyro.conf.Positional[Path], out: Path = Path("decoders.json")) -> None:
    items = find_items("folder", videos, None).items
    write_json(out, compare_decoders([videos / item.path for item in items]))


if __name__ == "__main__":
    tyro.cli(main)
