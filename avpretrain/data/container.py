"""Media files before they are decoded for use: opened, their streams told apart, claims checked, errors in a line."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import soundfile

from avpretrain.core.files import mistaken_for, open_file

__all__ = ["DecodeError", "MediaInfo", "probe_media"]

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
    """Average frame rate; 0 = no video or unknown."""
    width: int
    """Pixels as stored, before rotation."""
    height: int
    rotation: int
    """Degrees counter-clockwise by which players turn the frames: 0, 90, 180 or 270."""
    sample_rate: int
    """Hz; 0 = no audio."""
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
    from_decoder = False
    for frame, _ in traceback.walk_tb(error.__traceback__):  # from the outermost call to the innermost
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(own):
            from_decoder = False
        elif path.parts[:1] == ("av",) or any(path.is_relative_to(decoder) for decoder in decoders):
            from_decoder = True  # PyAV's compiled modules name their files av/...
    return from_decoder


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
            if mistake := mistaken_for(file.read(512)):
                raise DecodeError(mistake) from error
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
