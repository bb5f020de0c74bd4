"""Clips cut from files made as the world makes them, and what they show and play: see `media_files`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avpretrain.data.choices import Limits, Need
from avpretrain.data.decode import decode_audio, decode_video
from avpretrain.data.media import SAMPLE_RATE, Segment
from avpretrain.data.write.transcode import ClipMedia, TranscodeConfig, cut
from tests.support.media_files import SIZE, frame_at, sound_at, write_media

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


def still(path: Path, seconds: float, frames: int = 1, video: str = "libx264", audio: str = "aac") -> Path:
    """Audio of some seconds with so many frames of video, a tenth of a second each, at its beginning."""
    times = [i / 10 for i in range(frames)]
    return write_media(path, times=times, audio_seconds=seconds, video=video, audio=audio, rate=48_000)


def copy_faststart(source: Path, out: Path) -> Path:
    with av.open(str(source)) as old, av.open(str(out), "w", options={"movflags": "faststart"}) as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    return out


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
