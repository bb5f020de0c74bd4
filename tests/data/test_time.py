"""What a player shows and plays at time t stands at t: in clips, in a model's windows, and in what `embed` reads.

Files are made as the world makes them: packets lost, clocks that drift, trims without re-encoding, still video, covers,
audio that begins late. In each, the green of the video and the beeps of the audio tell the second (`media_files`).
"""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avpretrain.cli.main import main
from avpretrain.config.model import InputConfig
from avpretrain.data.choices import Limits, Need
from avpretrain.data.decode import DecodeError, decode_audio, decode_video
from avpretrain.data.media import SAMPLE_RATE, Segment, Source
from avpretrain.data.read.clips import ClipSet, decode_window
from avpretrain.data.sources import SourceName
from avpretrain.data.write.shards import ShardConfig, ShardReport, make_shards
from avpretrain.data.write.transcode import ClipMedia, TranscodeConfig, cut
from avpretrain.evaluation.extract import Reading, extract
from avpretrain.evaluation.frozen import FrozenEncoder, Pooling, input_for
from avpretrain.evaluation.longform import embed_file
from avpretrain.evaluation.probe.run import random_encoder
from tests.support.media_files import SIZE, frame_at, sound_at, write_media
from tests.support.tiny_models import tiny

MODES = ["train", "copy"]
BACKENDS = ["auto", "pyav"]


def clips_of(
    path: Path,
    need: Need = "both",
    segment: Segment | None = None,
    dropped: dict[str, float] | None = None,
    **options: Any,
) -> list[ClipMedia]:
    cfg = TranscodeConfig(**{"clip_seconds": 10.0, **options})
    return list(cut(path, segment, need, cfg, Limits(), dropped))


def shown(clip: ClipMedia, times: list[float], backend: Any = "auto") -> np.ndarray:
    """Seconds of the source that the clip shows at some of its times."""
    return decode_video(clip.video, times, backend=backend)[:, -8:, -8:, 1].mean(axis=(1, 2)) / 10


def onsets(pcm_S: np.ndarray, rate: int = SAMPLE_RATE) -> list[float]:
    """Where each beep begins, in seconds; one that is there from the start is left out."""
    width = rate // 8
    loud = np.convolve(np.abs(pcm_S) > 2000, np.ones(width), "full")[: len(pcm_S)] > 0  # each looks back only
    return [float(place) / rate for place in np.flatnonzero(np.diff(loud.astype(int)) == 1)]


def beeps(clip: ClipMedia) -> list[float]:
    return onsets(decode_audio(clip.audio, SAMPLE_RATE))


def copy_packets(source: Path, out: Path, change: Callable[[Any, int], bool], streams: int = 2) -> Path:
    """Copies a file packet by packet; `change(packet, number)` may alter each and says whether it is kept."""
    with av.open(str(source)) as old, av.open(str(out), "w") as new:
        copies = {s.index: new.add_stream_from_template(s) for s in list(old.streams)[:streams]}
        counts = Counter[int]()
        for packet in old.demux():
            if packet.size and packet.stream.index in copies:
                number = counts[packet.stream.index]
                counts[packet.stream.index] += 1
                if change(packet, number):
                    packet.stream = copies[packet.stream.index]
                    new.mux(packet)
    return out


@pytest.fixture(scope="module")
def opus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s, one Opus packet every 20 ms."""
    return write_media(tmp_path_factory.mktemp("opus") / "a.mkv", 20.0, audio="libopus", rate=48_000, gop=20)


@pytest.fixture(scope="module")
def aac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s of H.264 and AAC in mp4, a key frame every 5 s, with B-frames."""
    return write_media(tmp_path_factory.mktemp("aac") / "a.mp4", 20.0, gop=50, bframes=2)


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


# --- what stands still, covers ---------------------------------------------------------------------------------------


def still(path: Path, seconds: float, frames: int = 1, video: str = "libx264", audio: str = "aac") -> Path:
    """Audio of some seconds with so many frames of video, a tenth of a second each, at its beginning."""
    times = [i / 10 for i in range(frames)]
    return write_media(path, times=times, audio_seconds=seconds, video=video, audio=audio, rate=48_000)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "frames"), [("song.mp4", 1), ("song.mkv", 1), ("screen.mp4", 120)])
def test_the_last_frame_stays_until_the_audio_ends(tmp_path: Path, mode: str, name: str, frames: int) -> None:
    dropped: dict[str, float] = {}
    clips = clips_of(still(tmp_path / name, 30.0, frames), dropped=dropped, transcode=mode)
    assert sum(clip.duration for clip in clips) == pytest.approx(30.0, abs=0.1)
    assert all(clip.audio and clip.video for clip in clips)
    last = (frames - 1) / 10
    for clip in clips:
        times = [0.02, 3.02, 6.02, clip.duration - 0.22]
        np.testing.assert_allclose(shown(clip, times), [min(clip.start + t, last) for t in times], atol=0.3)
        for backend in BACKENDS:
            np.testing.assert_allclose(shown(clip, times, backend), shown(clip, times), atol=0.1)
        found = [b for b in beeps(clip) if b > 0.5]
        expected = [k - clip.start for k in range(30) if 0.5 < k - clip.start < clip.duration]
        np.testing.assert_allclose(found, expected, atol=0.035)
    stays = sum(amount for what, amount in dropped.items() if "last frame stays" in what)
    assert stays == pytest.approx(29.9 - last, abs=0.15)


def test_one_clip_of_a_still_is_as_long_as_its_audio(tmp_path: Path) -> None:
    path = still(tmp_path / "song.mp4", 20.0)
    for mode in MODES:
        (clip,) = clips_of(path, transcode=mode, clip_seconds=0.0)
        assert clip.duration == pytest.approx(20.0, abs=0.06)


def test_a_still_of_more_than_a_minute_needs_audio(tmp_path: Path) -> None:
    song = write_media(tmp_path / "slides.mp4", times=[0.0, 70.0], audio_seconds=75.0)
    assert sum(clip.duration for clip in clips_of(song, clip_seconds=25.0)) == pytest.approx(75.0, abs=0.2)
    silent = write_media(tmp_path / "silent.mp4", times=[0.0, 70.0], audio=None)
    with pytest.raises(DecodeError, match="gap of 70 s"):
        clips_of(silent, "video")


@pytest.mark.parametrize("mode", MODES)
def test_without_audio_the_container_says_how_long_the_last_frame_stays(tmp_path: Path, mode: str) -> None:
    """A screen recording that stops changing: its last packet lasts for 5 s."""

    def longer(packet: Any, number: int) -> bool:
        packet.duration = round((5.0 if number == 29 else 0.1) / packet.time_base)
        return True

    path = copy_packets(write_media(tmp_path / "a.mp4", 3.0, audio=None), tmp_path / "b.mp4", longer, streams=1)
    (clip,) = clips_of(path, "video", transcode=mode)
    assert clip.duration == pytest.approx(7.9, abs=0.3)  # the encoder's grid is that of the mean rate
    np.testing.assert_allclose(shown(clip, [1.0, 5.0, 7.5]), [1.0, 2.9, 2.9], atol=0.3)


def test_a_file_that_broke_off_is_not_filled_up_to_what_its_header_claims(tmp_path: Path) -> None:
    whole = write_media(tmp_path / "a.mkv", 20.0, audio=None).read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) // 2])
    fast = copy_faststart(tmp_path / "a.mkv", tmp_path / "c.mp4")
    fast.write_bytes(fast.read_bytes()[: len(fast.read_bytes()) // 2])
    for name in ("b.mkv", "c.mp4"):
        seconds = sum(clip.duration for clip in clips_of(tmp_path / name, "video", clip_seconds=0.0))
        assert 5 < seconds < 15


def copy_faststart(source: Path, out: Path) -> Path:
    with av.open(str(source)) as old, av.open(str(out), "w", options={"movflags": "faststart"}) as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    return out


@pytest.mark.parametrize(("name", "video"), [("cover.m4a", "libx264"), ("cover.mp3", "png"), ("cover.m4a", "mjpeg")])
def test_an_audio_file_with_a_cover_is_cut_along_its_audio(tmp_path: Path, name: str, video: str) -> None:
    path = tmp_path / name
    audio = "libmp3lame" if name.endswith("mp3") else "aac"
    container = None if name.endswith("mp3") else "mp4"
    write_covered(path, video, audio, container)
    dropped: dict[str, float] = {}
    clips = clips_of(path, "audio", dropped=dropped)
    assert [(clip.start, clip.duration, clip.video) for clip in clips] == [(0.0, 10.0, b""), (10.0, 10.0, b"")]
    assert dropped["cover images"] == 1
    np.testing.assert_allclose([b for b in beeps(clips[1]) if b > 0.5], range(1, 10), atol=0.06)


def write_covered(path: Path, video: str, audio: str, container: str | None) -> Path:
    """20 s of audio and one image; in mp3 it is an attached one, in others a stream like any other."""
    with av.open(str(path), "w", format=container) as out:
        image = out.add_stream(video, rate=10)
        image.width, image.height = SIZE
        image.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p"}.get(video, "yuv420p")
        sound = out.add_stream(audio, rate=44_100, layout="mono")
        frame = av.VideoFrame.from_ndarray(frame_at(0.0), format="rgb24").reformat(format=image.pix_fmt)
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        for packet in (*image.encode(frame), *image.encode()):
            out.mux(packet)
        resampler = av.AudioResampler(format=sound.format, layout="mono", rate=44_100, frame_size=sound.frame_size)
        wave = av.AudioFrame.from_ndarray(sound_at(0.0, 20.0, 44_100)[None], "fltp", "mono")
        wave.sample_rate, wave.time_base, wave.pts = 44_100, Fraction(1, 44_100), 0
        for part in (*resampler.resample(wave), *resampler.resample(None)):
            out.mux(sound.encode(part))
        out.mux(sound.encode())
    return path


def test_a_cover_in_front_of_the_video_is_not_taken_for_it(tmp_path: Path) -> None:
    """Matroska with a JPEG as first video stream, without a mark, and the video as second."""
    video = write_media(tmp_path / "a.mp4", 4.0)
    path = tmp_path / "b.mkv"
    with av.open(str(video)) as old, av.open(str(path), "w") as new:
        image = new.add_stream("mjpeg", rate=10)
        image.width, image.height, image.pix_fmt = *SIZE, "yuvj420p"
        copies = {s.index: new.add_stream_from_template(s) for s in old.streams}
        frame = av.VideoFrame.from_ndarray(frame_at(20.0), format="rgb24").reformat(format="yuvj420p")
        new.mux([*image.encode(frame), *image.encode()])
        for packet in old.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                new.mux(packet)
    dropped: dict[str, float] = {}
    (clip,) = clips_of(path, dropped=dropped)
    np.testing.assert_allclose(shown(clip, [0.5, 2.5]), [0.5, 2.5], atol=0.3)
    assert dropped["further video streams"] == 1


def test_the_default_stream_is_played_and_dubs_are_not(tmp_path: Path) -> None:
    quiet = write_media(tmp_path / "quiet.mp4", 4.0, audio_delay=0.5)
    plain = write_media(tmp_path / "plain.mp4", 4.0)
    disposition = av.stream.Disposition
    for number, marks in enumerate(((0, disposition.default), (disposition.dub, 0), (disposition.visual_impaired, 0))):
        path = tmp_path / f"{number}.mkv"
        with av.open(str(quiet)) as first, av.open(str(plain)) as second, av.open(str(path), "w") as new:
            picture = new.add_stream_from_template(second.streams.video[0])
            dub, own = (new.add_stream_from_template(c.streams.audio[0]) for c in (first, second))
            dub.disposition, own.disposition = (int(getattr(mark, "value", mark)) for mark in marks)
            for container, kind, copy in ((second, "video", picture), (first, "audio", dub), (second, "audio", own)):
                container.seek(0)
                for packet in container.demux(getattr(container.streams, kind)[0]):
                    if packet.size:
                        packet.stream = copy
                        new.mux(packet)
        (clip,) = clips_of(path)
        np.testing.assert_allclose([b for b in beeps(clip) if b > 0.3], [1.0, 2.0, 3.0], atol=0.05)


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


# --- AV1 -------------------------------------------------------------------------------------------------------------


def test_av1_is_copied(tmp_path: Path) -> None:
    try:
        path = write_media(tmp_path / "a.mp4", 4.0, video="libsvtav1", size=(128, 96))
    except ValueError:
        pytest.skip("this PyAV has no AV1 encoder")
    (clip,) = clips_of(path, transcode="copy")
    assert (clip.video_ext, round(clip.duration, 1)) == ("mp4", 4.0)
    np.testing.assert_allclose(shown(clip, [0.05, 2.05, 3.85]), [0.0, 2.0, 3.8], atol=0.3)


def test_a_copy_of_a_turned_video_is_upright(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", 2.0, rotation=90)
    (clip,) = clips_of(path, transcode="copy")
    for backend in BACKENDS:
        assert decode_video(clip.video, [0.5], backend=backend)[0, -8:, :8, 0].min() > 200  # type: ignore[arg-type]


# --- sets whose files are cut already --------------------------------------------------------------------------------


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


# --- what is said ----------------------------------------------------------------------------------------------------


def test_what_is_dropped_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_media(tmp_path / "src/late.mp4", 20.0, audio_delay=12.0, audio_seconds=6.0)
    write_media(tmp_path / "src/tail.mp4", 10.5)
    write_covered(tmp_path / "src/cover.mp3", "png", "libmp3lame", None)
    write_media(tmp_path / "src/plain.mp4", 10.0)
    out = tmp_path / "out"
    main(["shards", str(tmp_path / "src"), str(out), "--workers", "1"])
    said = capsys.readouterr().out
    for line in ("1 clips with less than half of their audio", "1 clips at the end of their file, shorter than 1 s",
                 "1 cover images"):  # fmt: skip
        assert f"  {line}\n" in said
    with (out / "sources.csv").open() as file:
        dropped = {row["path"]: row["dropped"] for row in csv.DictReader(file)}
    assert dropped == {
        "cover.mp3": "1 cover images",
        "late.mp4": "1 clips with less than half of their audio",
        "plain.mp4": "",
        "tail.mp4": "1 clips at the end of their file, shorter than 1 s",
    }
    main(["shards", str(tmp_path / "src"), str(out), "--workers", "1", "--json"])
    assert '"cover images": 1' in capsys.readouterr().out


def test_spans_are_ascending_and_apart(opus: Path, tmp_path: Path) -> None:
    path = copy_packets(opus, tmp_path / "lost.mkv", lambda p, n: p.stream.type == "video" or n % 50 < 25)
    source = Source(path, None, Limits())
    assert len(source.spans) == 21  # the last begins at 19.994 s
    assert all(a[1] < b[0] for a, b in itertools.pairwise(source.spans))
    assert source.heard(0, 20) == pytest.approx(10.0, abs=0.1)
    assert source.heard(4.0, 4.4) == pytest.approx(0.4, abs=0.03)
