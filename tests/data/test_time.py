"""What a player shows and plays at time t stands at t: in clips, in a model's windows, and in what `embed` reads.

Files are made as the world makes them: packets lost, clocks that drift, trims without re-encoding, audio that begins
late. In each, the green of the video and the beeps of the audio tell the second (`media_files`).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avpretrain.config.model import InputConfig
from avpretrain.data.choices import Limits
from avpretrain.data.container import DecodeError
from avpretrain.data.decode import decode_audio, decode_video
from avpretrain.data.media import SAMPLE_RATE, Segment, Source
from avpretrain.data.read.clips import ClipSet, decode_window
from avpretrain.data.write.shards import ShardConfig, make_shards
from avpretrain.data.write.transcode import TranscodeConfig
from avpretrain.evaluation.extract import Reading, extract
from avpretrain.evaluation.frozen import FrozenEncoder, Pooling, input_for
from avpretrain.evaluation.longform import embed_file
from avpretrain.evaluation.setup import random_encoder
from tests.support.clips import (
    BACKENDS,
    MODES,
    beeps,
    clips_of,
    copy_packets,
    onsets,
    shown,
    still,
    write_covered,
)
from tests.support.media_files import write_media
from tests.support.tiny_models import tiny

# --- lost packets and drifting clocks --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_lost_packets_leave_stays_where_it_was(opus: Path, tmp_path: Path, mode: str) -> None:
    path = copy_packets(opus, tmp_path / "lost.mkv", lambda p, n: p.stream.type == "video" or n % 5 != 4)
    dropped: dict[str, float] = {}
    clips = clips_of(path, dropped=dropped, transcode=mode)
    assert [round(clip.duration, 1) for clip in clips] == [10.0, 10.0]
    for clip in clips:
        expected = [k - clip.start for k in range(20) if 0.5 < k - clip.start < 9.9]
        np.testing.assert_allclose([b for b in beeps(clip) if 0.5 < b < 9.9], expected, atol=0.035)
    assert dropped["s of gaps in the audio, filled with silence"] == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize(("pace", "what"), [(1.02, "gaps in the audio"), (0.98, "audio that overlapped")])
def test_a_clock_that_drifts_is_followed(opus: Path, tmp_path: Path, pace: float, what: str) -> None:
    """Each packet alone is off by less than a millisecond; after 20 s it is 0.4 s."""

    def stretch(packet: Any, number: int) -> bool:
        if packet.stream.type == "audio":
            packet.pts = packet.dts = round(packet.pts * pace)
        return True

    path = copy_packets(opus, tmp_path / "drift.mkv", stretch)
    source = Source(path, None, Limits())
    for rate in (16_000, 32_000):  # as shards and as `embed` with another model read it
        pcm_S = source.sound(rate)
        assert pcm_S is not None
        found = [b for b in onsets(pcm_S, rate) if b > 0.5]
        np.testing.assert_allclose(found, [k * pace for k in range(1, len(found) + 1)], atol=0.035)
        assert len(found) == 19
    amount = next(value for name, value in source.dropped.items() if what in name)
    assert amount == pytest.approx(0.4, abs=0.05)


def test_a_frame_that_is_a_little_early_or_late_is_left_alone(opus: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def jitter(packet: Any, number: int) -> bool:
        if packet.stream.type == "audio" and number:
            packet.pts = packet.dts = packet.pts + int(rng.integers(-8, 9))  # milliseconds
        return True

    plain = copy_packets(opus, tmp_path / "plain.mkv", lambda p, n: True)
    paths = plain, copy_packets(opus, tmp_path / "jitter.mkv", jitter)
    kept, jittered = (Source(path, None, Limits()).sound(SAMPLE_RATE) for path in paths)
    assert kept is not None and jittered is not None
    np.testing.assert_array_equal(kept, jittered)


def test_embed_hears_what_the_shards_hold(opus: Path, tmp_path: Path) -> None:
    """The same file with lost packets, from a shard as a probe sees it, and straight from the file."""
    src = tmp_path / "src"
    src.mkdir()
    path = copy_packets(opus, src / "lost.mkv", lambda p, n: p.stream.type == "video" or n % 7 != 3)
    make_shards(src, tmp_path / "set", ShardConfig(workers=1, clips=TranscodeConfig(clip_seconds=0.0, short_side=32)))
    model = random_encoder(tiny(), seed=1)
    data = ClipSet([str(tmp_path / "set")], "all")
    probe = extract({"x": FrozenEncoder(model, "audio", Pooling())}, data, [0],
                    Reading(input_for(model, 20.0, "audio"), "audio", num_workers=0)).features["x"][0]  # fmt: skip
    dropped: dict[str, float] = {}
    (row,) = embed_file(model, path, "audio", "file", dropped)
    assert row.end == pytest.approx(20.0, abs=0.1)
    assert dropped["s of gaps in the audio, filled with silence"] > 2
    cosine = float(probe @ row.embedding_D / np.linalg.norm(probe) / np.linalg.norm(row.embedding_D))
    assert cosine > 0.999


# --- trims without re-encoding ---------------------------------------------------------------------------------------


def trim(source: Path, out: Path, start: float, end: float) -> Path:
    """As `ffmpeg -ss START -to END -c copy`: from the key frame before, the rest hidden by edit lists."""
    with av.open(str(source)) as container:
        video = container.streams.video[0]
        keys = [p.pts * p.time_base for p in container.demux(video) if p.size and p.is_keyframe]
    key = float(max(k for k in keys if k <= start))

    def shift(packet: Any, number: int) -> bool:
        time = float(packet.pts * packet.time_base)
        if time < (key if packet.stream.type == "video" else start - 1.0) or time >= end:
            return False
        packet.pts -= round(start / packet.time_base)
        packet.dts -= round(start / packet.time_base)
        return True

    return copy_packets(source, out, shift)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_trim_is_what_a_player_shows_of_it(aac: Path, tmp_path: Path, mode: str, backend: str) -> None:
    path = trim(aac, tmp_path / "cut.mp4", 3.6, 11.6)
    with av.open(str(path)) as container:
        assert any(p.is_discard for p in container.demux(video=0))
    (clip,) = clips_of(path, transcode=mode)
    assert (clip.start, round(clip.duration, 1)) == (0.0, 8.0)
    times = [0.05, 1.05, 2.5, 4.4, 7.85]
    np.testing.assert_allclose(shown(clip, times, backend) - 3.6, times, atol=0.3)
    np.testing.assert_allclose(beeps(clip), [k - 3.6 for k in range(4, 12)], atol=0.035)


def test_both_decoders_give_the_same_frames_of_a_trim_or_decord_refuses(aac: Path, tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    path = trim(aac, tmp_path / "cut.mp4", 3.6, 11.6)
    for data in (path.read_bytes(), clips_of(path, transcode="copy")[0].video):
        times = [0.0, 0.9, 1.8, 5.0, 7.9]
        np.testing.assert_array_equal(decode_video(data, times), decode_video(data, times, backend="pyav"))
        with pytest.raises(DecodeError, match="edit list"):
            decode_video(data, times, backend="decord")
    plain = clips_of(path)[0].video
    ours, theirs = (decode_video(plain, times, backend=b).astype(int) for b in ("decord", "pyav"))
    assert np.abs(ours - theirs).mean() < 0.5


def test_the_window_of_a_model_shows_and_plays_one_moment(aac: Path, tmp_path: Path) -> None:
    """A trim, copied into a shard: the window that training takes has video and audio in step."""
    (tmp_path / "src").mkdir()
    trim(aac, tmp_path / "src/cut.mp4", 3.6, 11.6)
    make_shards(tmp_path / "src", tmp_path / "set", ShardConfig(workers=1, clips=TranscodeConfig(transcode="copy")))
    data = ClipSet([str(tmp_path / "set")])
    assert (len(data), round(data.clip(0).duration, 1)) == (1, 8.0)
    cfg = InputConfig(audio_frames=200, video_frames=4, video_fps=2.0, video_size=32)
    for at in (0.0, 0.5, 1.0):
        sample = decode_window(data.encoded(0), cfg, 0, (at, at))
        begins = at * (8.0 - cfg.audio_seconds)
        assert sample.frames_THWC is not None
        seen = sample.frames_THWC[:, -8:, -8:, 1].mean(axis=(1, 2)) / 10 - 3.6
        np.testing.assert_allclose(seen, begins + (np.arange(4) + 0.5) / 2, atol=0.3)
        heard = [k - 3.6 - begins for k in range(4, 12) if 0.1 < k - 3.6 - begins < cfg.audio_seconds - 0.05]
        np.testing.assert_allclose([b for b in onsets(sample.waveform_S) if b > 0.1], heard, atol=0.04)


@pytest.mark.parametrize("mode", MODES)
def test_a_segment_is_in_step_and_ends_where_it_should(aac: Path, mode: str) -> None:
    """Between key frames: 6.45 to 14.45 s, with key frames at 5, 10 and 15."""
    (clip,) = clips_of(aac, "both", Segment(6.45, 14.45), transcode=mode)
    assert clip.start == pytest.approx(6.45, abs=0.1)
    assert clip.start + clip.duration == pytest.approx(14.45, abs=0.02)
    times = [0.1, 3.0, 4.2, 7.5]
    np.testing.assert_allclose(shown(clip, times) - clip.start, times, atol=0.3)
    np.testing.assert_allclose(beeps(clip), [k - clip.start for k in range(7, 15)], atol=0.035)
    assert len(decode_audio(clip.audio, SAMPLE_RATE)) == round(clip.duration * SAMPLE_RATE)


def test_what_can_be_cut_at_key_frames_only_is_said(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.webm", 12.0, video="libvpx", audio="libopus", rate=48_000, gop=50)
    with pytest.raises(DecodeError, match=r"vp8 can be cut at key frames only.*try --transcode train"):
        clips_of(path, "both", Segment(6.4, 9.4), transcode="copy")
    (clip,) = clips_of(path, "both", Segment(6.4, 9.4))
    np.testing.assert_allclose(shown(clip, [0.0, 2.0]) - 6.4, [0.0, 2.0], atol=0.6)  # coarse grey levels
    assert [round(c.start, 1) for c in clips_of(path, transcode="copy", clip_seconds=4.0)] == [0.0, 5.0, 10.0]


# --- audio and video that begin late or end early --------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_filled_in_silence_is_not_audio(tmp_path: Path, mode: str) -> None:
    path = write_media(tmp_path / "late.mkv", 20.0, audio_delay=12.0, audio_seconds=6.0, gop=50)
    clips = clips_of(path, "any", transcode=mode)
    assert [bool(clip.audio) for clip in clips] == [False, True]
    dropped: dict[str, float] = {}
    (clip,) = clips_of(path, "both", dropped=dropped, transcode=mode)
    assert (clip.start, round(clip.duration, 1)) == (10.0, 10.0)
    np.testing.assert_allclose(beeps(clip), range(2, 8), atol=0.05)
    assert dropped["clips with less than half of their audio"] == 1


def test_audio_in_two_pieces_counts_what_decodes(tmp_path: Path, opus: Path) -> None:
    """Audio from 0 to 1 s and from 19 to 20 s: most of each clip is filled in."""
    path = copy_packets(
        opus, tmp_path / "hole.mkv", lambda p, n: p.stream.type == "video" or not 1 < p.pts * p.time_base < 19
    )
    assert [bool(clip.audio) for clip in clips_of(path, "any")] == [False, False]
    with pytest.raises(DecodeError, match=r"no clip .* \(its audio decodes from 0.0 to 20.0 s\)"):
        clips_of(path, "both")


def test_clips_before_the_video_begins_have_none(tmp_path: Path) -> None:
    path = write_media(tmp_path / "late.mkv", 8.0, video_delay=12.0, audio_seconds=20.0)
    clips = clips_of(path, "any")
    there = [(clip.start, bool(clip.video), bool(clip.audio)) for clip in clips]
    assert there == [(0.0, False, True), (10.0, True, True)]
    np.testing.assert_allclose(shown(clips[1], [3.0, 9.0]), [1.0, 7.0], atol=0.3)
    assert [clip.start for clip in clips_of(path, "both")] == [10.0]


def test_embed_stands_by_the_same_clock(tmp_path: Path) -> None:
    model = random_encoder(tiny(), seed=1)
    held = embed_file(model, still(tmp_path / "song.mp4", 20.0), "both", "file")
    assert {row.modality: round(row.end, 1) for row in held} == {"audio": 20.0, "video": 20.0}
    (alone,) = embed_file(model, tmp_path / "song.mp4", "video", "file")
    np.testing.assert_array_equal(alone.embedding_D, held[1].embedding_D)
    late = write_media(tmp_path / "late.mkv", 8.0, audio_delay=4.0, audio_seconds=2.0)
    ends = {row.modality: round(row.end, 1) for row in embed_file(model, late, "both", "file")}
    assert ends == {"audio": 6.0, "video": 8.0}
    cover = write_covered(tmp_path / "cover.m4a", "mjpeg", "aac", "mp4")
    dropped: dict[str, float] = {}
    assert {row.modality for row in embed_file(model, cover, "both", "file", dropped)} == {"audio"}
    assert dropped["cover images"] == 1


def test_spans_are_ascending_and_apart(opus: Path, tmp_path: Path) -> None:
    path = copy_packets(opus, tmp_path / "lost.mkv", lambda p, n: p.stream.type == "video" or n % 50 < 25)
    source = Source(path, None, Limits())
    assert len(source.spans) == 21  # the last begins at 19.994 s
    assert all(a[1] < b[0] for a, b in itertools.pairwise(source.spans))
    assert source.heard(0, 20) == pytest.approx(10.0, abs=0.1)
    assert source.heard(4.0, 4.4) == pytest.approx(0.4, abs=0.03)
