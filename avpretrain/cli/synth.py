"""`avpretrain synth`."""

from __future__ import annotations

import collections
import json
import os
import time
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avpretrain.cli.shared.places import require_folder
from avpretrain.core.terminal import Console, say


def main(
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    clips: int = 600,
    seed: int = 0,
    seconds: float = 4.0,
    size: int = 128,
    fps: int = 12,
    val_share: float = 0.1,
    test_share: float = 0.1,
    workers: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Renders synthetic scenes: balls of five materials that bounce, roll and collide, heard as they are seen.

    Reads nothing. Writes OUT/clips/*.mp4 (H.264 and 16 kHz AAC), OUT/labels.csv and OUT/synth.json. The same seed and
    settings give the same bytes on one machine, and a longer run keeps the clips of a shorter one; if interrupted, run
    it again to resume. Takes about a tenth of a second a clip and CPU core at the default size.

    Args:
        out: Folder to write; new, empty, or made by this command with the same settings.
        clips: Number of clips.
        seed: Seed of everything random.
        seconds: Length of a clip. A pattern repeats every 0.55 to 0.75 s.
        size: Height and width in pixels.
        fps: Frames a second.
        val_share: Share of each class in the validation split.
        test_share: Share of each class in the test split.
        workers: Processes; 0 = one a CPU core.
        as_json: Print the summary as JSON.
    """
    from avpretrain.data.scenes.make import LABELS_NAME, make_scenes
    from avpretrain.data.scenes.scene import CLIPS_DIR, SceneSettings

    require_folder(out, "OUT")
    settings = SceneSettings(seed=seed, seconds=seconds, size=size, fps=fps, val_share=val_share, test_share=test_share)
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    columns = TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TextColumn("clips"), TimeRemainingColumn()
    start = time.perf_counter()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=clips)
        rows = make_scenes(out, clips, settings, workers or processes, lambda: progress.advance(task))
    took = time.perf_counter() - start
    splits = dict(collections.Counter(row["split"] for row in rows))
    classes = dict(sorted(collections.Counter(row["class"] for row in rows).items()))
    if as_json:
        print(json.dumps({"out": str(out), "clips": clips, "splits": splits, "classes": classes, "seconds": took}))
        return
    counts = ", ".join(f"{count} {split}" for split, count in splits.items())
    say(f"{clips} clips of {seconds:g} s in {len(classes)} classes ({counts}) in {took:.0f} s")
    say(f"{out / CLIPS_DIR} holds the videos, {out / LABELS_NAME} their labels; next: avpretrain shards {out} SHARDS")
