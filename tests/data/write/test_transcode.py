"""One file to clips: cut where they should be, picture and sound in step, whatever the container does."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avpretrain.data.choices import Limits, Need
from avpretrain.data.container import DecodeError
from avpretrain.data.decode import decode_audio, decode_video
from avpretrain.data.media import SAMPLE_RATE, Segment
from avpretrain.data.write.encode import ClipEncoder, prepare
from avpretrain.data.write.transcode import ClipMedia, TranscodeConfig, cut
from tests.support.clips import shown
from tests.support.media_files import write_media


def clips_of(path: Path, need: Need = "any", segment: Segment | None = None, **options: Any) -> list[ClipMedia]:
    return list(cut(path, segment, need, TranscodeConfig(**{"clip_seconds": 2.0, **options}), Limits()))


def beeps(clip: ClipMedia) -> list[float]:
    """Where in the clip each beep begins, in seconds."""
    loud = np.convolve(np.abs(decode_audio(clip.audio, SAMPLE_RATE)) > 2000, np.ones(320), "same") > 0
    return list(np.flatnonzero(np.diff(np.r_[False, loud].astype(int)) == 1) / SAMPLE_RATE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("b_frames.mp4", {"bframes": 2, "fps": Fraction(30_000, 1001)}),
        ("a.mkv", {"gop": 100}),
        ("a.webm", {"video": "libvpx", "audio": "libopus", "rate": 48_000}),
        ("a.avi", {"video": "mpeg4", "audio": "libmp3lame", "rate": 44_100}),
        ("a.mpg", {"video": "mpeg1video", "audio": "mp2", "fps": 25, "rate": 44_100}),
        ("motion.avi", {"video": "mjpeg", "audio": "pcm_s16le"}),
        ("a.ts", {}),
        ("a.flv", {"video": "flv1", "audio": "libmp3lame", "rate": 44_100}),
    ],
)
def test_any_container_becomes_the_same_clips(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    clips = clips_of(write_media(tmp_path / name, 5.0, **options), "both")
    assert [clip.start for clip in clips] == [0.0, 2.0, 4.0]
    assert [round(clip.duration, 2) for clip in clips[:2]] == [2.0, 2.0]
    assert all((clip.fps, clip.width, clip.height, clip.video_ext) == (8.0, 64, 48, "mp4") for clip in clips)
    for clip in clips[:2]:
        np.testing.assert_allclose(shown(clip, [0.0, 1.0, 1.9]) - clip.start, [0.0, 1.0, 1.9], atol=0.4)
        assert len(decode_audio(clip.audio, SAMPLE_RATE)) == 2 * SAMPLE_RATE
        np.testing.assert_allclose(beeps(clip), [0.0, 1.0], atol=0.08)


def test_equal_frames_give_equal_bytes() -> None:
    """A textured picture that drifts: with x264's macroblock tree, AVX-512 wrote one encoding in 150 differently."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:124, 0:140]
    picture = 128 + 60 * np.sin(x / 9) + 50 * np.cos(y / 13 + x / 31) + 40 * ((x // 17 + y // 11) % 2)
    rgb = picture[..., None] + np.array([0, 10, -20])
    shots = [rgb[i : i + 64, i : i + 80] + rng.normal(0, 1, (64, 80, 3)) for i in range(24)]
    frames = [
        prepare(av.VideoFrame.from_ndarray(shot.clip(0, 255).astype(np.uint8), "rgb24"), 64, 1.0) for shot in shots
    ]
    found = set()
    for size in rng.integers(1, 2_000_000, 300):
        between = rng.bytes(size)  # so that the encoder finds other memory each time
        encoder = ClipEncoder(Fraction(8), gop=4, crf=23)
        for frame in frames:
            encoder.add(frame)
        found.add(encoder.finish())
        del between
    assert len(found) == 1


def test_copied_clips_begin_at_key_frames_with_their_sound(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", 7.0, bframes=2, gop=12)
    clips = clips_of(path, "both", transcode="copy")
    assert [round(clip.start, 2) for clip in clips] == [0.0, 2.4, 4.8]
    assert [clip.fps for clip in clips] == [10.0] * 3
    for clip in clips:
        times = [0.0, 0.5, 1.0, 1.7]
        np.testing.assert_allclose(shown(clip, times) - clip.start, times, atol=0.25)
        expected = [s - clip.start for s in range(7) if 0 < s - clip.start < clip.duration]
        np.testing.assert_allclose([b for b in beeps(clip) if b > 0], expected, atol=0.05)


def test_streams_that_begin_late_stay_in_step(tmp_path: Path) -> None:
    late_sound = clips_of(write_media(tmp_path / "a.mp4", 4.0, audio_delay=0.5), "both")[0]
    np.testing.assert_allclose(beeps(late_sound), [0.5, 1.5], atol=0.05)
    late_picture = clips_of(write_media(tmp_path / "b.mp4", 4.0, video_delay=0.5), "both")[0]
    np.testing.assert_allclose(shown(late_picture, [0.0, 1.0, 1.875]), [0.0, 0.5, 1.375], atol=0.15)
    np.testing.assert_allclose(beeps(late_picture), [0.0, 1.0], atol=0.05)


def test_variable_frame_rate_becomes_constant(tmp_path: Path) -> None:
    times = [0, 0.05, 0.1, 1.5, 1.55, 3.0, 3.9]
    (first, second) = clips_of(write_media(tmp_path / "a.mp4", 4.0, times=times))
    assert first.duration == second.duration == 2.0
    np.testing.assert_allclose(shown(first, [0.0, 0.5, 1.5]), [0.0, 0.1, 1.5], atol=0.3)
    np.testing.assert_allclose(shown(second, [1.0]), [3.0], atol=0.3)


def test_rotated_and_wide_pixels_come_out_upright_and_square(tmp_path: Path) -> None:
    clip = clips_of(write_media(tmp_path / "a.mp4", 2.0, rotation=90, size=(640, 480)), short_side=120)[0]
    assert (clip.width, clip.height) == (120, 160)
    assert decode_video(clip.video, [0.0])[0, -40:, :40, 0].min() > 200


def test_small_pictures_are_not_enlarged_and_odd_ones_made_even(tmp_path: Path) -> None:
    clip = clips_of(write_media(tmp_path / "a.mkv", 1.0, video="ffv1", size=(51, 37)))[0]
    assert (clip.width % 2, clip.height % 2) == (0, 0)
    assert abs(clip.width - 51) <= 1
    assert abs(clip.height - 37) <= 1


def test_tails_are_dropped_but_short_files_are_kept(tmp_path: Path) -> None:
    assert [c.duration for c in clips_of(write_media(tmp_path / "a.mp4", 4.8))] == [2.0, 2.0]
    assert [c.duration for c in clips_of(write_media(tmp_path / "b.mp4", 5.0))] == [2.0, 2.0, 1.0]
    assert [c.duration for c in clips_of(write_media(tmp_path / "c.mp4", 0.5))] == [0.5]
    assert [c.duration for c in clips_of(tmp_path / "b.mp4", clip_seconds=0.0)] == [5.0]
    with pytest.raises(DecodeError, match=r"no clip of 0.1 s"):
        clips_of(write_media(tmp_path / "d.wav", 0.05, video=None, audio="pcm_s16le"))


def test_clips_without_sound_are_dropped_where_sound_is_needed(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", 6.0, audio_seconds=3.0)
    assert [bool(clip.audio) for clip in clips_of(path, "any")] == [True, True, False]
    both = clips_of(path, "both")
    assert [clip.start for clip in both] == [0.0, 2.0]
    assert not decode_audio(both[1].audio, SAMPLE_RATE)[round(1.2 * SAMPLE_RATE) :].any()


@pytest.mark.parametrize(
    ("need", "options", "reason"),
    [
        ("both", {"audio": None}, "no audio"),
        ("audio", {"audio": None}, "no audio"),
        ("both", {"video": None}, "no video"),
        ("video", {"video": None}, "no video"),
    ],
)
def test_what_is_needed_and_not_there_is_the_reason(
    tmp_path: Path, need: Need, options: dict[str, Any], reason: str
) -> None:
    path = write_media(tmp_path / "a.mp4", **options)
    with pytest.raises(DecodeError, match=reason):
        clips_of(path, need)
    assert clips_of(path, "any")


def test_a_segment_is_cut_from_a_whole_video_and_left_alone_when_cut_already(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", 12.0, gop=12)
    (clip,) = clips_of(path, "both", Segment(5.0, 7.0))
    assert (clip.start, clip.duration) == (5.0, 2.0)
    np.testing.assert_allclose(shown(clip, [0.0, 1.0]), [5.0, 6.0], atol=0.3)
    np.testing.assert_allclose(beeps(clip), [0.0, 1.0], atol=0.08)
    cut_before = write_media(tmp_path / "b.mp4", 2.0)
    assert [c.start for c in clips_of(cut_before, "both", Segment(5.0, 7.0))] == [0.0]


def test_limits_are_the_reason(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", 8.0)
    for limits, reason in (
        (Limits(max_hours=5 / 3600), "more than 0.00138889 h"),
        (Limits(max_megapixels=0.001), "frames of 64x48, more than 0.001 megapixels"),
        (Limits(max_streams=1), "has 2 streams, more than 1"),
    ):
        with pytest.raises(DecodeError, match=reason):
            list(cut(path, None, "any", TranscodeConfig(), limits))


def test_writing_is_deterministic(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", 3.0)
    for mode in ("train", "copy"):
        first, second = (clips_of(path, transcode=mode) for _ in range(2))
        assert [(c.video, c.audio) for c in first] == [(c.video, c.audio) for c in second]


def test_every_frame_is_close_to_a_key_frame(tmp_path: Path) -> None:
    import io

    import av

    (clip,) = clips_of(write_media(tmp_path / "a.mp4", 4.0, gop=40), clip_seconds=4.0, gop=4)
    with av.open(io.BytesIO(clip.video)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == list(range(0, 32, 4))
    assert all(packet.pts == packet.dts for packet in packets)
