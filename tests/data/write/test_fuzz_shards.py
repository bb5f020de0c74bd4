"""Hundreds of damaged and odd files through the sharder: each is used or skipped with a reason; what is used reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avpretrain.config.model import InputConfig
from avpretrain.data.media import Limits
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.read.dataset import eval_loader
from avpretrain.data.verify import verify
from avpretrain.data.write.shards import ShardConfig, make_shards
from avpretrain.data.write.transcode import TranscodeConfig
from tests.support.media_files import write_media

KINDS: dict[str, dict[str, Any]] = {
    "a.mp4": {},
    "b_frames.mp4": {"bframes": 2},
    "a.mkv": {"gop": 4},
    "a.webm": {"video": "libvpx", "audio": "libopus", "rate": 48_000},
    "a.avi": {"video": "mpeg4", "audio": "libmp3lame", "rate": 44_100},
    "a.mpg": {"video": "mpeg1video", "audio": "mp2", "fps": 25, "rate": 44_100},
    "a.ts": {},
    "a.flv": {"video": "flv1", "audio": "libmp3lame", "rate": 44_100},
    "a.wav": {"video": None, "audio": "pcm_s16le"},
    "a.flac": {"video": None, "audio": "flac"},
}
SOUND: dict[str, dict[str, Any]] = {
    "no_sound.mp4": {"audio": None},
    "no_picture.mp4": {"video": None},
    "rotated.mp4": {"rotation": 90},
    "variable.mp4": {"times": [0, 0.01, 0.4, 0.41, 0.9]},
    "slow.mp4": {"fps": 1, "seconds": 3.0},
    "fast.mp4": {"fps": 120},
    "odd_rate.mp4": {"rate": 11_025},
    "one_frame.mp4": {"times": [0]},
    "odd_size.mkv": {"video": "ffv1", "size": (33, 17)},
    "late.mp4": {"audio_delay": 0.9},
    "stereo.mp4": {"channels": 2, "rate": 48_000},
}


def damage(data: bytes, rng: np.random.Generator, kind: int) -> bytes:
    """A file cut off, with flipped bits anywhere or in its header, with a hole, or with its parts exchanged."""
    changed = bytearray(data)
    if kind == 0:
        return data[: int(len(data) * rng.random())]
    if kind in (1, 2):
        reach = len(data) if kind == 1 else min(len(data), 400)
        for place in rng.integers(0, reach, int(rng.integers(1, 12))):
            changed[place] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        start = int(rng.integers(len(data)))
        changed[start : start + 700] = bytes(len(changed[start : start + 700]))
    else:
        half = int(rng.integers(len(data)))
        changed = changed[half:] + changed[:half]
    return bytes(changed)


def huge_claims(data: bytes) -> bytes:
    """The mp4 with its durations and frame counts set to four billion."""
    changed = bytearray(data)
    for box, offset in ((b"mvhd", 20), (b"mdhd", 20), (b"stts", 12), (b"stsz", 12)):
        place = data.find(box)
        changed[place + offset : place + offset + 4] = b"\xff\xff\xff\xf0"
    return bytes(changed)


@pytest.fixture(scope="module")
def wreckage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, whole = tmp_path_factory.mktemp("wreckage"), tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    for name, options in KINDS.items():
        data = write_media(whole / name, **options).read_bytes()
        for number in range(20):
            (root / f"{number}_{name}").write_bytes(damage(data, rng, number % 5))
    for name, options in SOUND.items():
        write_media(root / name, **{"seconds": 1.0, **options})
    good = (whole / "a.mp4").read_bytes()
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("this is no video\n" * 50)
    (root / "mp4_named.avi").write_bytes(good)
    (root / "wav_named.mp4").write_bytes((whole / "a.wav").read_bytes())
    (root / "mp4_named.wav").write_bytes(good)
    (root / "huge.mp4").write_bytes(huge_claims(good))
    (root / "play_list.mp4").write_text("#EXTM3U\n#EXTINF:10,\nrotated.mp4\n")
    (root / "zero.mp4").write_bytes(bytes(100_000))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("transcode", ["train", "copy"])
def test_every_damaged_file_is_used_or_skipped(wreckage: Path, tmp_path: Path, transcode: Any) -> None:
    files = sorted(path.name for path in wreckage.iterdir())
    assert len(files) >= 200
    clips = TranscodeConfig(transcode=transcode, clip_seconds=1.0)
    cfg = ShardConfig(clips=clips, limits=Limits(max_hours=0.1), workers=2, timeout=300.0)
    report = make_shards(wreckage, tmp_path / "set", cfg)
    skipped = {done.path: done.reason for done in report.skipped}
    used = {report.manifest.clip(row).source for row in range(len(report.manifest))}
    assert used | set(skipped) == set(files)
    assert not used & set(skipped)
    fine = {"rotated.mp4", "variable.mp4", "slow.mp4", "fast.mp4", "odd_rate.mp4", "stereo.mp4", "mp4_named.avi"}
    assert fine <= used
    assert {"no_sound.mp4", "no_picture.mp4", "empty.mp4", "text.mp4", "wav_named.mp4", "zero.mp4"} <= set(skipped)
    assert "progress" not in " ".join(skipped.values())
    assert all("\n" not in reason and len(reason) < 300 for reason in skipped.values())
    assert verify(tmp_path / "set") == []


@pytest.mark.slow
def test_the_loader_reads_everything_that_was_kept(wreckage: Path, tmp_path: Path) -> None:
    clips = TranscodeConfig(transcode="copy", clip_seconds=1.0, need="any")
    make_shards(wreckage, tmp_path / "set", ShardConfig(clips=clips, workers=2, timeout=300.0))
    kept = ClipSet([str(tmp_path / "set")], "all")
    small = InputConfig(audio_frames=64, video_frames=2, video_size=32)
    batches = list(eval_loader(kept, small, range(len(kept)), batch_size=16, num_workers=0))
    assert sum(len(batch) for batch in batches) == len(kept)
    assert sum(batch.failed for batch in batches) == 0
