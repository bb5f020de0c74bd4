"""Bytes to arrays: the right frames and samples, the same from both decoders, and an error where there are none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avpretrain.data.container import DecodeError, probe_media
from avpretrain.data.decode import decode_audio, decode_video, fit, nearest
from tests.support.media_files import SIZE, write_media

decord = pytest.importorskip("decord", reason="decord has no wheel for this platform")
BACKENDS = ["decord", "pyav"]


def green(frames: np.ndarray) -> np.ndarray:
    """Time in seconds that each frame shows, from its lower right corner (see media_files.frame_at)."""
    return frames[:, -8:, -8:, 1].mean(axis=(1, 2)) / 10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("b_frames.mp4", {"bframes": 3}),
        ("long_gop.mkv", {"gop": 200}),
        ("vp8.webm", {"video": "libvpx", "audio": "libopus", "rate": 48_000}),
    ],
)
def test_frames_are_those_nearest_to_the_times(tmp_path: Path, backend: str, name: str, options: dict) -> None:
    data = write_media(tmp_path / name, 8.0, **options).read_bytes()
    times = [0.0, 4.04, 7.9, 2.5, 99.0]
    frames = decode_video(data, times, backend=backend)
    assert frames.shape == (5, SIZE[1], SIZE[0], 3)
    np.testing.assert_allclose(green(frames), [0.0, 4.0, 7.9, 2.5, 7.9], atol=0.35)  # lossy


def test_variable_frame_rate_goes_by_time_not_by_index(tmp_path: Path) -> None:
    path = write_media(tmp_path / "vfr.mp4", times=[0, 0.1, 0.2, 5.0, 5.1, 9.0])
    for backend in BACKENDS:
        frames = decode_video(path.read_bytes(), [0.19, 2.0, 3.0, 8.8], backend=backend)
        np.testing.assert_allclose(green(frames), [0.2, 0.2, 5.0, 9.0], atol=0.25)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_pictures_come_upright(tmp_path: Path, rotation: int) -> None:
    path = write_media(tmp_path / "phone.mp4", rotation=rotation)
    assert probe_media(path).rotation == rotation
    ours, theirs = (decode_video(path.read_bytes(), [0.5], backend=backend) for backend in ("auto", "pyav"))
    corner = {90: ours[0, -8:, :8], 180: ours[0, -8:, -8:], 270: ours[0, :8, -8:]}[rotation]
    assert corner[..., 0].min() > 200  # the red quarter, stored in the upper left
    assert ours.shape == theirs.shape == ((1, 48, 64, 3) if rotation == 180 else (1, 64, 48, 3))
    np.testing.assert_allclose(ours.astype(int), theirs.astype(int), atol=3)


def test_both_decoders_agree(tmp_path: Path) -> None:
    data = write_media(tmp_path / "a.mp4", 3.0, size=(96, 64)).read_bytes()
    times = [0.3 * i for i in range(10)]
    ours, theirs = (decode_video(data, times, 40, backend) for backend in BACKENDS)
    assert ours.shape == theirs.shape == (10, 40, 60, 3)
    assert np.abs(ours.astype(int) - theirs).mean() < 0.5


def test_nearest_frame_earlier_one_in_a_tie() -> None:
    assert nearest(np.array([0.0, 1.0, 2.0]), [-1.0, 0.5, 0.51, 1.4, 9.0]) == [0, 0, 1, 1, 2]
    assert nearest(np.array([0.0]), [0.0, 3.0]) == [0, 0]


def test_short_side_keeps_the_shape() -> None:
    assert fit(1280, 720, 256) == (455, 256)
    assert fit(720, 1280, 256) == (256, 455)
    assert fit(100, 50, 0) == (100, 50)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("kind", ["empty", "text", "sound", "half"])
def test_what_has_no_picture_is_one_error(tmp_path: Path, backend: str, kind: str) -> None:
    whole = write_media(tmp_path / "a.mp4").read_bytes()
    sound = write_media(tmp_path / "a.wav", video=None, audio="pcm_s16le").read_bytes()
    data = {"empty": b"", "text": b"no video " * 99, "sound": sound, "half": whole[: len(whole) // 2]}[kind]
    with pytest.raises(DecodeError) as error:
        decode_video(data, [0.0], backend=backend)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_sound_is_exact_at_its_own_rate() -> None:
    pcm = np.random.default_rng(0).integers(-32768, 32767, 16_000).astype(np.int16)
    for file_format in ("FLAC", "WAV"):
        buffer = io.BytesIO()
        soundfile.write(buffer, pcm, 16_000, format=file_format, subtype="PCM_16")
        np.testing.assert_array_equal(decode_audio(buffer.getvalue(), 16_000), pcm)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_sound_is_mixed_resampled_and_scaled(subtype: str) -> None:
    t = np.arange(44_100) / 44_100
    left = 0.5 * np.sin(2 * np.pi * 300 * t)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, np.zeros_like(left)], axis=1), 44_100, format="WAV", subtype=subtype)
    pcm = decode_audio(buffer.getvalue(), 16_000)
    assert abs(len(pcm) - 16_000) <= 2
    expected = 0.25 * 32768 * np.sin(2 * np.pi * 300 * np.arange(len(pcm)) / 16_000)
    assert np.abs(pcm - expected)[100:-100].max() < 40


@pytest.mark.parametrize("data", [b"", b"RIFF", b"fLaC" + bytes(50)])
def test_damaged_sound_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_audio(data, 16_000)


def test_probe_says_what_is_there(tmp_path: Path) -> None:
    info = probe_media(write_media(tmp_path / "a.mp4", 2.0, rate=44_100, channels=2))
    assert (info.has_video, info.has_audio, info.width, info.height) == (True, True, *SIZE)
    assert (info.fps, info.sample_rate, info.video_codec, info.audio_codec) == (10.0, 44_100, "h264", "aac")
    assert info.duration == pytest.approx(2.0, abs=0.1)
    silent = probe_media(write_media(tmp_path / "b.mp4", audio=None))
    assert (silent.has_audio, silent.sample_rate) == (False, 0)


def test_a_play_list_opens_no_other_file(tmp_path: Path) -> None:
    write_media(tmp_path / "secret.mp4")
    trap = tmp_path / "trap.mp4"
    trap.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(DecodeError):
        probe_media(trap)
