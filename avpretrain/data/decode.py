"""Bytes of a clip to arrays: the only file that decodes for the loader (decord, soundfile, and PyAV behind decord).

T frames, H height, W width, C colours, S samples.
"""

from __future__ import annotations

import functools
import io
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import soundfile
from av.video.reformatter import VideoReformatter
from jaxtyping import Int16, UInt8

from avpretrain.core.files import mistaken_for, open_file

Frames = UInt8[np.ndarray, "_t _h _w 3"]
Sound = Int16[np.ndarray, "_s"]

av.logging.set_level(None)  # libav's remarks on damaged files would flood stderr; what matters is raised


NOT_FINITE = "has samples that are no finite numbers (NaN or infinity)"


class DecodeError(Exception):
    """Something can't be decoded; the message is the reason, fit for one line."""


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What a file's headers claim; damaged files claim anything."""

    duration: float
    """Seconds; 0 = unknown."""
    has_video: bool
    has_audio: bool
    fps: float
    """Average frame rate; 0 = no picture or unknown."""
    width: int
    """Pixels as stored, before rotation."""
    height: int
    rotation: int
    """Degrees counter-clockwise by which players turn the picture: 0, 90, 180 or 270."""
    sample_rate: int
    """Hz; 0 = no sound."""
    video_codec: str
    audio_codec: str
    streams: int
    """Streams of all kinds."""


@contextmanager
def decoding(prefix: str = "") -> Iterator[None]:
    """Turns what damaged data raises inside the block into a `DecodeError` of one line, which begins with `prefix`.

    Damaged data raises OSError, av.FFmpegError, soundfile's own errors, and a ValueError, RuntimeError, ArithmeticError
    or IndexError that comes out of a decoder's call. Everything else is a fault of this program or of an incompatible
    decoder, which would strike every file: it passes.
    """
    try:
        yield
    except DecodeError:
        raise
    except MemoryError:
        raise DecodeError("needs more memory than there is") from None
    except (OSError, av.FFmpegError, soundfile.SoundFileError) as error:
        raise DecodeError(prefix + _reason(error)) from None
    except (ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        if not _from_a_decoder(error):
            raise
        raise DecodeError(prefix + _reason(error)) from None


def _from_a_decoder(error: BaseException) -> bool:
    """Whether an error was raised by PyAV, soundfile or decord (or below them) and not by a line of this package."""
    own = Path(__file__).parents[1]
    decoders = [Path(av.__file__).parent, Path(soundfile.__file__)]
    if "decord" in sys.modules:
        decoders.append(Path(str(sys.modules["decord"].__file__)).parent)
    found = False
    for frame, _ in traceback.walk_tb(error.__traceback__):  # from the outermost call to the innermost
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(own):
            found = False
        elif path.parts[:1] == ("av",) or any(path.is_relative_to(decoder) for decoder in decoders):
            found = True  # PyAV's compiled modules name their files av/...
    return found


def _reason(error: BaseException) -> str:
    """The first line of an error that says something, without addresses of C++ frames."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    lines = [line.split("Stack trace")[0].rsplit("] ", 1)[-1].strip() for line in str(text).splitlines()]
    return next((line for line in lines if line), type(error).__name__)[:160]


_OPEN: dict[str, Any] = {
    # Play lists in disguise may name other files and addresses: nothing but the file itself is ever opened.
    "options": {"protocol_whitelist": "none"},
    # Titles and the like in unknown encodings; from PyAV 19 on they never raise, and the argument is gone.
    **({"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}),
}
"""Arguments with which every file is opened."""


@contextmanager
def open_media(source: Path | bytes) -> Iterator[Any]:
    """Opens a file, or the bytes of one, with PyAV.

    Raises:
        DecodeError: no demuxer understands it, or reading fails inside the block.
    """
    with decoding(), io.BytesIO(source) if isinstance(source, bytes) else open_file(source) as file:
        try:
            with decoding("can't be opened: "):
                container = av.open(file, **_OPEN)
        except DecodeError as error:
            file.seek(0)
            if found := mistaken_for(file.read(512)):
                raise DecodeError(found) from error
            raise
        with container:
            yield container


_COVERS = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
_STILL_CODECS = frozenset({"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls", "jpegxl"})
_SPECIAL = (
    av.stream.Disposition.dub
    | av.stream.Disposition.comment
    | av.stream.Disposition.karaoke
    | av.stream.Disposition.hearing_impaired
    | av.stream.Disposition.visual_impaired
    | av.stream.Disposition.clean_effects
)
"""Versions of a stream that a player takes only when it is told to, unless one is the default."""


def video_streams(container: Any) -> list[Any]:
    """The video streams that have a decoder, the one that a player shows first; attached cover images are left out.

    The default stream comes before others, a stream of one image (a cover that is not marked as one) after moving ones.
    """
    streams = [s for s in container.streams.video if not s.disposition & _COVERS and s.codec_context is not None]
    return sorted(streams, key=lambda s: (_is_still(s), *_rank(s)))


def audio_streams(container: Any) -> list[Any]:
    """The audio streams that have a decoder, the one that a player plays first: the default, dubs and comments last."""
    streams = [s for s in container.streams.audio if s.codec_context is not None]
    return sorted(streams, key=lambda s: (not s.codec_context.sample_rate, *_rank(s)))


def _rank(stream: Any) -> tuple[bool, bool]:
    default = bool(stream.disposition & av.stream.Disposition.default)
    return not default, bool(stream.disposition & _SPECIAL)


def _is_still(stream: Any) -> bool:
    return stream.frames == 1 or stream.codec_context.name in _STILL_CODECS


def picture_stream(container: Any) -> Any | None:
    """The video stream that a player shows, or none; attached cover art is not video."""
    return next(iter(video_streams(container)), None)


def sound_stream(container: Any) -> Any | None:
    """The audio stream that a player plays, or none."""
    return next(iter(audio_streams(container)), None)


def probe_media(path: Path) -> MediaInfo:
    """Reads a file's headers, and one frame for its rotation.

    Raises:
        DecodeError: it is no media file.
    """
    with open_media(path) as container:
        video, audio = picture_stream(container), sound_stream(container)
        ends = [float(s.duration * s.time_base) for s in (video, audio) if s is not None and s.duration]
        duration = container.duration / av.time_base if container.duration else max(ends, default=0.0)
        return MediaInfo(
            duration=max(0.0, float(duration)),
            has_video=video is not None,
            has_audio=audio is not None,
            fps=float(average_rate(video)) if video else 0.0,
            width=video.codec_context.width if video else 0,
            height=video.codec_context.height if video else 0,
            rotation=_rotation(container, video) if video else 0,
            sample_rate=(audio.codec_context.sample_rate or 0) if audio else 0,
            video_codec=video.codec_context.name if video else "",
            audio_codec=audio.codec_context.name if audio else "",
            streams=len(container.streams),
        )


MAX_PIXELS = 40_000_000
"""Pixels of the largest frame that is decoded (8K has 33 million)."""
MAX_SAMPLES = 1 << 27
"""Most samples of a clip's audio, over all channels: 2.3 hours at 16 kHz."""
SAMPLE_RATES = (1000, 768_000)
"""Hz; outside of it a second of audio is a bomb, or nothing."""


def check_pixels(width: int, height: int) -> None:
    """Raises a `DecodeError` if frames of that size are not to be decoded."""
    if width * height > MAX_PIXELS:
        raise DecodeError(f"has frames of {width}x{height}, more than {MAX_PIXELS / 1e6:g} megapixels")


def check_sample_rate(rate: int) -> None:
    """Raises a `DecodeError` if audio of that rate is not to be decoded."""
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise DecodeError(f"claims a sample rate of {rate} Hz, outside of {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]}")


def average_rate(video: Any) -> Fraction:
    """Frames a second of a stream; 0 where the container does not say, or claims nonsense."""
    rate = video.average_rate or video.guessed_rate or Fraction(0)
    return Fraction(rate) if Fraction(1, 1000) <= rate <= 1000 else Fraction(0)


def _rotation(container: Any, video: Any) -> int:
    check_pixels(video.codec_context.width, video.codec_context.height)
    try:
        return int(next(container.decode(video)).rotation) % 360
    except (StopIteration, av.FFmpegError):
        return 0


# --- pictures --------------------------------------------------------------------------------------------------------


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
            raise DecodeError("no picture")
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


# --- sound -----------------------------------------------------------------------------------------------------------


def decode_audio(data: bytes, sample_rate: int) -> Sound:
    """A sound file's samples as mono PCM at `sample_rate` (channels averaged).

    Raises:
        DecodeError: it is no sound file that soundfile reads, or it is damaged.
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
