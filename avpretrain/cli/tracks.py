"""`avpretrain tracks SRC OUT`."""

from __future__ import annotations

import json as json_format
import math
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from avpretrain.cli.shared.places import require_folder
from avpretrain.core.terminal import Console, say
from avpretrain.methods.speaker.tracks.config import TracksConfig


def main(
    src: Annotated[Positional[str], arg(metavar="SRC")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    cfg: Annotated[OmitArgPrefixes[TracksConfig], arg(name="")] = TracksConfig(),  # noqa: B008
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Turn videos with boxes and labels of faces into face tracks, for active speaker detection.

    Reads SRC: a folder with videos and tables as of AVA-ActiveSpeaker (CSV), or the word synthetic, which reads nothing
    and renders talking heads. A table is for the split that its name or its folder's says (train, val, test). Writes
    OUT: SPLIT-000000.tar ..., tracks.json: grey face crops at 25 a second, 16 kHz audio, a label for each frame. Takes
    as long as decoding every video once, or about a third of a second a synthetic scene and core. Stopped and started
    again with the same files and options, it goes on (with --as-videos it starts anew); when all is done, it does
    nothing.

    Args:
        src: folder of videos and tables, or synthetic.
        out: folder of the data set; new, or one that was made before.
        cfg: how.
        json_: print the summary as JSON.
    """
    require_folder(out, "OUT")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from avpretrain.core.locks import locked
    from avpretrain.methods.speaker.tracks.make import kind_of, make_tracks, write_scenes

    console = Console(stderr=True)
    columns = TextColumn("videos"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()
    with (
        locked(out.with_name(f"{out.name}.lock"), "making face tracks"),
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        line = bar.add_task("", total=None)

        def show(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)

        if cfg.as_videos:
            kind_of(src, cfg)
            written = write_scenes(out, cfg, show)
            say(f"{out}: {written} videos, a table for each split; next: avpretrain tracks {out} TRACKS")
            return
        report = make_tracks(src, out, cfg, show)
    index = report.index
    facts: dict[str, Any] = {
        "fingerprint": index.fingerprint,
        "face_size": index.face_size,
        "splits": {
            name: {
                "tracks": len(split.tracks),
                "mixtures": len(split.mixtures),
                "frames": split.frames,
                "labelled": split.labelled,
                "speaking": split.speaking,
                "loudness_ap": None if math.isnan(report.loudness[name]) else report.loudness[name],
            }
            for name, split in index.splits.items()
        },
        "missing": report.missing,
        "skipped": report.skipped,
    }
    if json_:
        print(json_format.dumps(facts, indent=2))
        return
    for name, found in facts["splits"].items():
        mixed = f" and {found['mixtures']:,} mixtures of them" if found["mixtures"] else ""
        share = found["speaking"] / max(1, found["labelled"])
        loud = (
            f"; loudness alone ranks them with AP {found['loudness_ap']:.3f}"
            if found["loudness_ap"] is not None
            else ""
        )
        say(
            f"{name}: {found['tracks']:,} tracks{mixed}, {found['frames']:,} frames, {share:.1%} of those with a label "
            f"speaking{loud}"
        )
    if report.skipped:
        video, why = next(iter(report.skipped.items()))
        say(f"skipped {len(report.skipped)} videos, e.g. {video}, which {why}")
    if report.missing:
        say(f"missing {len(report.missing)} videos that the tables name, e.g. {report.missing[0]}")
    say(f"{out}: faces of {index.face_size} x {index.face_size}, fingerprint {index.fingerprint[:16]}")
