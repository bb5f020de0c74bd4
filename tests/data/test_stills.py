"""Still video, covers and further streams: what a player shows stands, and what is dropped is counted and said."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avpretrain.cli.main import main
from avpretrain.data.container import DecodeError
from tests.support.clips import (
    BACKENDS,
    MODES,
    beeps,
    clips_of,
    copy_faststart,
    copy_packets,
    shown,
    still,
    write_covered,
)
from tests.support.media_files import SIZE, frame_at, write_media


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
