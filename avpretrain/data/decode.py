"""Bytes of a clip to arrays: the only file that decodes for the loader (decord, soundfile, and PyAV behind decord).

T frames, H height, W width, C colours, S samples.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any, Literal

import av
import numpy as np
import soundfile
from av.video.reformatter import VideoReformatter
from jaxtyping import Int16, UInt8

from avpretrain.data.container import (
    MAX_PIXELS,
    MAX_SAMPLES,
    NOT_FINITE,
    DecodeError,
    _reason,
    average_rate,
    check_pixels,
    check_sample_rate,
    decoding,
    open_media,
    picture_stream,
)

__all__ = ["decode_audio", "decode_video"]

Frames = UInt8[np.ndarray, "_t _h _w 3"]
Sound = Int16[np.ndarray, "_s"]


# --- video -----------------------------------------------------------------------------------------------------------


def decode_video(
    data: bytes, times: Sequence[float], short_side: int = 0, backend: Literal["auto", "decord", "pyav"] = "auto"
) -> Frames:
    """The frames nearest to `times`, upright, as RGB.

    Args:
        data: a whole video file.
        times: seconds from the first frame that is shown; times past the end give the last frame.
        short_side: length of the shorter side after resizing, in pixels; 0 keeps the size.
        backend: auto = decord, and PyAV where decord is not installed or can't read the file. decord can hang on
            damaged files, so pass it only clips that were checked when they were sharded; for files of unknown origin
            choose pyav.

    Raises:
        DecodeError: neither decoder gets these frames.
    """
    if not data:
        raise DecodeError("empty file")
    if backend == "pyav" or (backend == "auto" and _decord() is None):
        frames = _pyav_frames(data, times)
    else:
        try:
            frames = _decord_frames(data, times)
        except DecodeError:
            if backend == "decord":
                raise
            frames = _pyav_frames(data, times)
    return resize(frames, short_side)


@functools.cache
def _decord() -> Any | None:
    """The decord module; none where it has no wheel."""
    try:
        import decord
    except ImportError:
        return None
    decord.logging.set_level(decord.logging.FATAL)
    return decord


def _decord_frames(data: bytes, times: Sequence[float]) -> Frames:
    decord = _decord()
    if decord is None:
        raise DecodeError("decord is not installed")
    with open_media(data) as container:  # half a millisecond; decord tells a frame's size only once it is decoded
        if (stream := picture_stream(container)) is not None:
            check_pixels(stream.codec_context.width, stream.codec_context.height)
    with decoding():
        try:
            reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
            starts = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
            if starts[0] < 0 or (np.diff(starts) < 0).any():
                # decord counts frames that an edit list hides, but never gets them: its indices would be off
                raise DecodeError("has an edit list that hides frames, which decord can't follow; PyAV can")
            frames: Frames = reader.get_batch(nearest(starts - starts[0], times)).asnumpy()
        except AssertionError as error:
            if "frame count" not in str(error):
                raise
            raise DecodeError(str(error)) from None
        except decord.DECORDError as error:
            raise DecodeError(_reason(error)) from None
    return frames


def nearest(starts: np.ndarray, times: Sequence[float]) -> list[int]:
    """For each time, the index of the frame whose start (ascending, in s) is closest; the earlier one in a tie."""
    wanted = np.asarray(times, dtype=np.float64)
    right = np.clip(np.searchsorted(starts, wanted), 1, max(1, len(starts) - 1))
    left = right - 1
    right = np.minimum(right, len(starts) - 1)
    return np.where(wanted - starts[left] <= starts[right] - wanted, left, right).tolist()


def _pyav_frames(data: bytes, times: Sequence[float]) -> Frames:
    """As `_decord_frames`: seeks to the key frame before the earliest time, then decodes up to the latest."""
    order = np.argsort(np.asarray(times), kind="stable")
    picked: dict[int, np.ndarray] = {}
    with open_media(data) as container:
        stream = picture_stream(container)
        if stream is None:
            raise DecodeError("no video")
        check_pixels(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may change its size
        stream.thread_type = "NONE"
        base = None if stream.start_time is None else float(stream.start_time * stream.time_base)
        if base is not None:
            first = int((base + min(times, default=0.0) - 0.5) / stream.time_base)
            if first > stream.start_time:
                container.seek(first, stream=stream)
        previous, before, waiting = None, 0.0, list(order)
        step = float(1 / (average_rate(stream) or 1))
        for frame in container.decode(stream):
            time = frame.time if frame.time is not None else before + step
            base = time if base is None else base
            while waiting and time - base >= times[waiting[0]]:
                wanted = times[waiting[0]]
                early = previous is not None and wanted - (before - base) <= time - base - wanted
                picked[waiting.pop(0)] = upright(previous if early else frame)
            previous, before = frame, time
            if not waiting:
                break
        if previous is None:
            raise DecodeError("no frame decodes")
        for index in waiting:
            picked[index] = upright(previous)
    if len({frame.shape for frame in picked.values()}) > 1:
        raise DecodeError("its frames change in size")
    return np.stack([picked[i] for i in range(len(times))])


def upright(frame: Any) -> UInt8[np.ndarray, "h w c"]:
    """A PyAV frame as RGB, turned as its display matrix asks."""
    with decoding():
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4))


def fit(width: int | float, height: int | float, short_side: int) -> tuple[int, int]:
    """Width and height of the same shape whose shorter side is `short_side` (0, or larger than it: as it is)."""
    scale = short_side / min(width, height) if short_side > 0 else 1.0
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(frames_THWC: Frames, short_side: int) -> Frames:
    """Frames with the shorter side brought to `short_side` by area averaging; 0 keeps them."""
    height, width = frames_THWC.shape[1:3]
    to_width, to_height = fit(width, height, short_side)
    if (to_width, to_height) == (width, height):
        return frames_THWC
    mode = "AREA" if short_side < min(width, height) else "BILINEAR"
    # One thread: many processes decode side by side, and each would start as many threads as there are cores.
    scale = functools.partial(VideoReformatter().reformat, interpolation=mode, threads=1)
    frames = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames_THWC)
    with decoding():
        return np.stack([scale(frame, to_width, to_height).to_ndarray() for frame in frames])


# --- audio -----------------------------------------------------------------------------------------------------------


def decode_audio(data: bytes, sample_rate: int) -> Sound:
    """An audio file's samples as mono PCM at `sample_rate` (channels averaged).

    Raises:
        DecodeError: it is no audio file that soundfile reads, or it is damaged.
    """
    with decoding(), soundfile.SoundFile(io.BytesIO(data)) as file:
        rate = file.samplerate
        check_sample_rate(rate)
        if file.frames * file.channels > MAX_SAMPLES:
            raise DecodeError(f"claims {file.frames} samples of {file.channels} channels, more than {MAX_SAMPLES}")
        if (resampled := file.frames * sample_rate / rate) > MAX_SAMPLES:
            raise DecodeError(
                f"claims {file.frames / rate:.0f} s, which at {sample_rate} Hz are {resampled:.2g} samples, "
                f"more than {MAX_SAMPLES}"
            )
        blocks = file.blocks(max(1, BLOCK_SAMPLES // file.channels), dtype="float32", always_2d=True)
        parts = [_mono(samples_SK) for samples_SK in blocks]
    pcm_S: Sound = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.int16), *parts])
    return pcm_S if rate == sample_rate else _resample(pcm_S, rate, sample_rate)


BLOCK_SAMPLES = 1 << 22
"""Samples that are decoded together: a clip, but not an hour."""


def _mono(samples_SK: np.ndarray) -> Sound:
    mono_S = samples_SK[:, 0] if samples_SK.shape[1] == 1 else samples_SK.mean(axis=1)
    if not np.isfinite(mono_S).all():
        raise DecodeError(NOT_FINITE)
    pcm_S: Sound = np.clip(np.rint(mono_S * 32768), -32768, 32767).astype(np.int16)
    return pcm_S


def _resample(pcm_S: Sound, rate: int, to_rate: int) -> Sound:
    with decoding():
        resampler = av.AudioResampler(format="s16", layout="mono", rate=to_rate)
        frame = av.AudioFrame.from_ndarray(pcm_S[None], format="s16", layout="mono")
        frame.sample_rate = rate
        parts = [f.to_ndarray()[0] for f in (*resampler.resample(frame), *resampler.resample(None))]
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)
