"""Windows of speech and of silence by the times of words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from avpretrain.core.errors import UserError
from avpretrain.data.media import Segment
from avpretrain.data.sources import find_items
from avpretrain.data.sources.speech import WINDOW_SECONDS, stretches
from avpretrain.data.write.shards import ShardConfig, make_shards
from avpretrain.data.write.transcode import TranscodeConfig
from tests.support.media_files import write_media
from tests.support.real_data import REAL_DATA, needs_real_data

WORDS = "0.000-0.950:sil;0.950-1.180:bin;1.180-1.360:blue;1.360-2.120:at;2.120-2.980:sil"


def test_words_join_and_gaps_are_silence() -> None:
    assert stretches(WORDS, "x") == [(0.0, 0.95, False), (0.95, 2.12, True), (2.12, 2.98, False)]
    assert stretches("0.5-1.0:a;1.5-2.0:b", "x") == [(0.5, 1.0, True), (1.0, 1.5, False), (1.5, 2.0, True)]
    assert stretches("0-1:SP;1-2:", "x") == [(0.0, 2.0, False)]


def test_windows_lie_inside_their_stretch(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    table = f"file,words,digit,speaker,split\na.mp4,{WORDS},2,s1,test\nb.mp4,,3,s2,train\n"
    (tmp_path / "metadata.csv").write_text(table)
    listing = find_items("folder_speech", tmp_path, None)
    assert [(item.segment, item.labels["speech"]) for item in listing.items] == [
        (Segment(0.0, 0.5), "no"),
        (Segment(0.95, 1.45), "yes"),
        (Segment(1.45, 1.95), "yes"),
        (Segment(2.12, 2.62), "no"),
    ]
    assert {item.split for item in listing.items} == {"test"}
    assert set(listing.items[0].labels) == {"speech", "speaker"}
    assert listing.missing == ["word times of b.mp4"]


def test_grid_in_its_own_layout(tmp_path: Path) -> None:
    (tmp_path / "s1" / "align").mkdir(parents=True)
    (tmp_path / "s1" / "bbaf2n.mpg").touch()
    (tmp_path / "s1" / "align" / "bbaf2n.align").write_text("0 23750 sil\n23750 53000 bin\n")
    labels = [item.labels for item in find_items("grid_speech", tmp_path, None).items]
    assert labels == [{"speaker": "s1", "speech": kind} for kind in ("no", "yes", "yes")]


def test_times_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "metadata.csv").write_text("file,words\na.mp4,0.1:hello\n")
    with pytest.raises(UserError, match=r"a\.mp4 hold '0\.1:hello', which is not START-END:WORD"):
        find_items("folder_speech", tmp_path, None)


def test_windows_become_clips_with_sound_and_picture(tmp_path: Path) -> None:
    write_media(tmp_path / "src" / "a.mp4", 3.0)
    (tmp_path / "src" / "metadata.csv").write_text(f"file,words\na.mp4,{WORDS}\n")
    cfg = ShardConfig(source="folder_speech", workers=1, clips=TranscodeConfig(clip_seconds=0))
    manifest = make_shards(tmp_path / "src", tmp_path / "out", cfg).manifest
    clips = [manifest.clip(row) for row in range(len(manifest))]
    assert Counter(clip.label_dict["speech"] for clip in clips) == {"yes": 2, "no": 2}
    assert {clip.source for clip in clips} == {"a.mp4"}
    for clip in clips:
        assert clip.duration == WINDOW_SECONDS  # wherever it starts: a longer clip would end in silence
        assert clip.video_length and clip.audio_length


@needs_real_data
def test_real_talkers_are_cut_about_evenly() -> None:
    listing = find_items("folder_speech", REAL_DATA / "grid_av", None)
    kinds = Counter((item.split, item.labels["speech"]) for item in listing.items)
    assert len(listing.missing) == 9  # clips of other talkers that have no alignment
    for split, least in (("train", 1000), ("val", 100), ("test", 100)):
        assert min(kinds[split, "yes"], kinds[split, "no"]) > least
