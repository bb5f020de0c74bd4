"""Sets whose files are cut already, VGGSound's and AudioSet's: a file named ID_START is the segment itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avpretrain.data.decode import decode_video
from avpretrain.data.media import Segment
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.sources import SourceName
from avpretrain.data.write.shards import ShardConfig, ShardReport, make_shards
from avpretrain.data.write.transcode import TranscodeConfig
from tests.support.clips import (
    MODES,
    clips_of,
    copy_packets,
)


def sharded(root: Path, out: Path, source: SourceName, mode: str) -> tuple[ShardReport, dict[str, Any]]:
    clips = TranscodeConfig(transcode=mode)  # type: ignore[arg-type]
    report = make_shards(root, out, ShardConfig(source=source, workers=1, clips=clips))
    manifest = report.manifest
    return report, {manifest.clip(row).source: manifest.clip(row) for row in range(len(manifest))}


@pytest.mark.parametrize("mode", MODES)
def test_vggsound_files_with_a_start_are_cut_already(aac: Path, tmp_path: Path, mode: str) -> None:
    root = tmp_path / "vgg"
    root.mkdir()
    for name, end in (("AAAAAAAAAAA_000005", 13.0), ("BBBBBBBBBBB_000030", 13.0), ("CCCCCCCCCCC", 20.0),
                      ("DDDDDDDDDDD", 13.0)):  # fmt: skip
        copy_packets(aac, root / f"{name}.mp4", lambda p, n, end=end: p.pts * p.time_base < end)
    (root / "vggsound.csv").write_text(
        "AAAAAAAAAAA,5,dog,train\nBBBBBBBBBBB,30,dog,train\nCCCCCCCCCCC,7,cat,train\nDDDDDDDDDDD,30,cat,train\n"
    )
    report, clips = sharded(root, tmp_path / "out", "vggsound", mode)
    assert {name[:1]: (round(clip.start), round(clip.duration, 1)) for name, clip in clips.items()} == {
        "A": (0, 10.0), "B": (0, 10.0), "C": (7, 10.0),
    }  # fmt: skip
    (skipped,) = report.skipped
    assert skipped.path == "DDDDDDDDDDD.mp4"
    assert (
        "too short to be the recording" in skipped.reason
        and "lasts 13.1 s, the segment is 30 to 40 s" in skipped.reason
    )
    data = ClipSet([str(tmp_path / "out")])
    for row in range(len(data)):
        media, begins = data.encoded(row).media, {"A": 0, "B": 0, "C": 7}[data.clip(row).source[:1]]
        seen = decode_video(media.video, [1.05, 8.05])[:, -8:, -8:, 1].mean(axis=(1, 2)) / 10
        np.testing.assert_allclose(seen, [begins + 1.0, begins + 8.0], atol=0.35)
    again, _ = sharded(root, tmp_path / "out", "vggsound", mode)
    assert again.added == 0


def test_audioset_names_say_whether_a_file_is_cut(aac: Path, tmp_path: Path) -> None:
    root = tmp_path / "as"
    root.mkdir()
    names = {
        "AAAAAAAAAAA_30000.mp4": 13.0, "YBBBBBBBBBBB_30-40.mp4": 13.0, "CCCCCCCCCCC_30.000_40.000.mp4": 13.0,
        "YDDDDDDDDDDD.mp4": 10.0, "EEEEEEEEEEE.mp4": 20.0, "FFFFFFFFFFF_99.mp4": 13.0, "GGGGGGGGGGG.mp4": 13.0,
    }  # fmt: skip
    for name, end in names.items():
        copy_packets(aac, root / name, lambda p, n, end=end: p.pts * p.time_base < end)
    rows = [f'{c * 11}, {5 if c == "E" else 30}.000, {15 if c == "E" else 40}.000, "/m/0"' for c in "ABCDEFG"]
    (root / "balanced_train_segments.csv").write_text("\n".join(["# YTID, start_seconds, end_seconds", *rows]))
    report, clips = sharded(root, tmp_path / "out", "audioset", "train")
    found = {name.strip("Y")[:1]: (clip.start, clip.duration) for name, clip in clips.items()}
    assert found == {"A": (0, 10), "B": (0, 10), "C": (0, 10), "D": (0, 10), "E": (5, 10)}
    assert report.listing.missing == ["F" * 11]
    assert [(done.path, done.reason.split(" (")[0]) for done in report.skipped] == [
        ("GGGGGGGGGGG.mp4", "is too short to be the recording from which its segment is to be cut")
    ]


def test_a_segment_of_a_short_recording_is_not_the_whole_of_it(aac: Path, tmp_path: Path) -> None:
    """Half a second of speech in a file of 1.4 s, which is within a second of the segment's length."""
    path = copy_packets(aac, tmp_path / "a.mp4", lambda p, n: p.pts * p.time_base < 1.4)
    (clip,) = clips_of(path, "both", Segment(0.8, 1.3, is_whole_file=False))
    assert (clip.start, round(clip.duration, 2)) == (0.8, 0.5)
