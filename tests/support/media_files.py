"""Media files in the shapes that the world has them in, and damaged ones, all tiny and made from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (64, 48)


def frame_at(time: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 [H, W, 3]: green grows with time, up to 25 s; the upper left quarter is bright red."""
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 1] = min(250, round(10 * time))
    image[: height // 2, : width // 2] = (250, 20, 20)
    return image


def sound_at(start: float, seconds: float, rate: int) -> np.ndarray:
    """float32: a tone of 400 Hz that beeps for the first 0.2 s of every second."""
    t = start + np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 400 * t) * (t % 1 < 0.2)).astype(np.float32)


def write_media(
    path: Path,
    seconds: float = 1.0,
    *,
    video: str | None = "libx264",
    audio: str | None = "aac",
    fps: Fraction | int = 10,
    size: tuple[int, int] = SIZE,
    rate: int = 16_000,
    channels: int = 1,
    rotation: int = 0,
    times: Sequence[float] | None = None,
    gop: int = 12,
    bframes: int = 0,
    audio_delay: float = 0.0,
    video_delay: float = 0.0,
    audio_seconds: float | None = None,
    container: str | None = None,
) -> Path:
    """Writes a file with a moving picture and sound, either of which may be left out.

    Args:
        path: where; the extension chooses the container unless `container` does.
        seconds: length.
        video: encoder, or none.
        audio: encoder, or none.
        fps: frames a second.
        size: width and height as stored.
        rate: Hz.
        channels: 1 or 2.
        rotation: degrees of the display matrix.
        times: when each frame is shown, for a variable frame rate.
        gop: frames from one key frame to the next.
        bframes: most B-frames in a row.
        audio_delay: seconds before the sound begins.
        video_delay: seconds before the picture begins.
        audio_seconds: length of the sound, if it is not `seconds`.
        container: libav's name of the format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container, options={"fflags": "+bitexact"}) as out:
        picture = _add_video(out, video, Fraction(fps), size, rotation, gop, bframes) if video else None
        sound = out.add_stream(audio, rate=rate, layout="mono" if channels == 1 else "stereo") if audio else None
        if picture is not None:
            base = Fraction(1, 90_000)
            for time in times if times is not None else np.arange(round(seconds * fps)) / float(fps):
                frame = av.VideoFrame.from_ndarray(frame_at(float(time), size), format="rgb24").reformat(
                    format=picture.pix_fmt
                )
                frame.pts, frame.time_base = round((float(time) + video_delay) / base), base
                out.mux(picture.encode(frame))
            out.mux(picture.encode())
        if sound is not None:
            _encode_sound(out, sound, audio_seconds or seconds, rate, channels, audio_delay)
    return path


def _add_video(
    out: Any, codec: str, fps: Fraction, size: tuple[int, int], rotation: int, gop: int, bframes: int
) -> Any:
    options = {"threads": "1", "preset": "ultrafast", "x264-params": f"bframes={bframes}"} if codec == "libx264" else {}
    stream = out.add_stream(codec, rate=fps, options=options)
    stream.width, stream.height = size
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, bframes
    stream.codec_context.time_base = Fraction(1, 90_000) if codec in ("libx264", "libvpx", "libvpx-vp9") else 1 / fps
    if codec in ("mpeg4", "flv1"):
        stream.bit_rate = 2_000_000
    if rotation:
        stream.set_display_rotation(rotation)
    return stream


def _encode_sound(out: Any, stream: Any, seconds: float, rate: int, channels: int, delay: float) -> None:
    wave = np.repeat(sound_at(0.0, seconds, rate)[None], channels, axis=0)
    resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=rate, frame_size=stream.frame_size)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), "fltp", "mono" if channels == 1 else "stereo")
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(delay * rate)
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        out.mux(stream.encode(part))
    out.mux(stream.encode())
