"""One source file to clips, re-encoded for training or copied. S samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avpretrain.data.decode import DecodeError, Sound, decode_video
from avpretrain.data.encode import ClipEncoder, encode_flac, prepare, remux
from avpretrain.data.media import Limits, Segment, Source
from avpretrain.errors import UsageError

SAMPLE_RATE = 16_000
MIN_CLIP_SECONDS = 0.1
MIN_COVER = 0.5

Need = Literal["auto", "both", "audio", "video", "any"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TranscodeConfig:
    """How clips are cut and written."""

    transcode: Literal["train", "copy"] = "train"
    """train: small H.264 made for random access; copy: the picture stream as it is, cut at its key frames. Sound
    becomes 16 kHz mono FLAC either way."""
    clip_seconds: float = 10.0
    """Length of a clip; 0 = each file is one clip."""
    min_seconds: float = 1.0
    """A file's last clip is dropped if it is shorter (unless it is the only one)."""
    fps: float = 8.0
    """Frames a second of transcoded clips; slower sources keep their rate."""
    short_side: int = 256
    """Pixels of the shorter side of transcoded clips; smaller sources, and all with 0, keep their size."""
    gop: int = 4
    """Frames from one key frame to the next: fewer = faster random access, larger files."""
    crf: int = 23
    """x264's constant rate factor: lower = better and larger."""
    need: Need = "auto"
    """What a clip must have: both; audio; video; any; auto = what the file's type promises (sound files: audio, else
    both), or what the source says."""

    def __post_init__(self) -> None:
        positive = {"fps": self.fps, "gop": self.gop}
        for name, value in positive.items():
            if value <= 0:
                raise UsageError(f"{name} must be positive, got {value}")
        for name in ("clip_seconds", "min_seconds", "short_side"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.crf <= 51:
            raise UsageError(f"crf must lie in 0..51, got {self.crf}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipMedia:
    """One clip, encoded."""

    start: float
    """Seconds into the source file."""
    duration: float
    video: bytes
    """Empty = no picture."""
    video_ext: str
    fps: float
    width: int
    height: int
    audio: bytes
    """FLAC; empty = no sound."""
    pcm_S: Sound | None
    """The same sound, decoded."""


def cut(path: Path, segment: Segment | None, need: Need, cfg: TranscodeConfig, limits: Limits) -> Iterator[ClipMedia]:
    """The clips of one file.

    Cuts run along the picture, or along the sound where there is no picture. A clip has sound if at least half of it is
    covered by sound; the rest is silence.

    Raises:
        DecodeError: the file can't be decoded, is over the limits, or has not what `need` asks for.
    """
    source = Source(path, segment, limits)
    if need in ("both", "video") and not source.has_video:
        raise DecodeError("has no picture")
    if need in ("both", "audio") and not source.has_audio:
        raise DecodeError("has no sound")
    pcm_S = source.sound(SAMPLE_RATE)
    if need in ("both", "audio") and pcm_S is None:
        raise DecodeError("has no sound that decodes")
    if not source.has_video and pcm_S is None:
        raise DecodeError("has neither picture nor sound")
    kept = 0
    pieces = _pieces(source, pcm_S, cfg)
    for number, piece in enumerate(pieces):
        if piece.duration < (cfg.min_seconds if number else MIN_CLIP_SECONDS):
            continue
        clip = _with_sound(piece, pcm_S, source.offset)
        if need in ("both", "audio") and not clip.audio:
            continue
        check(clip, whole=cfg.transcode == "copy")
        kept += 1
        yield clip
    if not kept:
        raise DecodeError(f"has no clip of {MIN_CLIP_SECONDS:g} s or more with {_WANTED[need]}")


_WANTED = {
    "both": "picture and sound",
    "audio": "sound",
    "video": "picture",
    "any": "picture or sound",
    "auto": "content",
}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A clip before its sound is cut; times from the source's zero."""

    start: float
    duration: float
    video: bytes = b""
    video_ext: str = ""
    fps: float = 0.0
    width: int = 0
    height: int = 0


def _pieces(source: Source, pcm_S: Sound | None, cfg: TranscodeConfig) -> Iterator[_Piece]:
    if source.has_video:
        yield from _transcoded(source, cfg) if cfg.transcode == "train" else _copied(source, cfg)
        return
    assert pcm_S is not None
    total = len(pcm_S) / SAMPLE_RATE
    length = cfg.clip_seconds or total
    for number in range(max(1, int(np.ceil(total / length - 1e-9)))):
        yield _Piece(number * length, min(length, total - number * length))


def on_grid(
    frames: Iterator[tuple[float, Any]], fps: Fraction, source_fps: Fraction, seconds: float = math.inf
) -> Iterator[Any]:
    """For times 0, 1/fps, 2/fps ... the frame nearest to each, until the last frame has been shown for its time.

    Args:
        seconds: where a segment ends, which its last frame may outlast.
    """
    count, before = 0, None
    for time, frame in frames:
        while before is not None and count / fps <= (before[0] + time) / 2:
            yield before[1]
            count += 1
        before = time, frame
    if before is None:
        raise DecodeError("no frame of its picture decodes")
    end = min(before[0] + float(1 / (source_fps or fps)), seconds)
    while count / fps < end - 1e-6:
        yield before[1]
        count += 1


def _transcoded(source: Source, cfg: TranscodeConfig) -> Iterator[_Piece]:
    wanted = Fraction(cfg.fps).limit_denominator(1001)
    fps = min(wanted, source.rate.limit_denominator(1001)) if source.rate else wanted
    per_clip = max(1, round(cfg.clip_seconds * fps)) if cfg.clip_seconds else None
    if per_clip is not None:  # a whole number of frames fills a clip exactly
        fps = per_clip / Fraction(cfg.clip_seconds).limit_denominator(1001)
    encoder, number, size = None, 0, (0, 0)

    def finished(encoder: ClipEncoder) -> _Piece:
        start = float(number * (per_clip or 0) / fps)
        return _Piece(start, float(encoder.count / fps), encoder.finish(), "mp4", float(fps), *size)

    for frame in on_grid(source.frames(), fps, source.rate, source.seconds):
        if encoder is not None and encoder.count == per_clip:
            yield finished(encoder)
            encoder, number = None, number + 1
        ready = prepare(frame, cfg.short_side, source.aspect)
        if encoder is None:
            encoder, size = ClipEncoder(fps, cfg.gop, cfg.crf), (ready.width, ready.height)
        elif (ready.width, ready.height) != size:
            ready = ready.reformat(*size, threads=1)
        encoder.add(ready)
    if encoder is not None:
        yield finished(encoder)


def _copied(source: Source, cfg: TranscodeConfig) -> Iterator[_Piece]:
    """Clips of at least `clip_seconds` that end where the next key frame stands."""
    packets: list[Any] = []
    start = 0.0
    for time, packet in source.packets():
        if packet is None:
            if packets:
                yield _remuxed(packets, start, time - start, source)
        elif packet.is_keyframe and (not packets or (cfg.clip_seconds and time - start >= cfg.clip_seconds - 1e-3)):
            if packets:
                yield _remuxed(packets, start, time - start, source)
            packets, start = [packet], time
        elif packets:
            packets.append(packet)


def _remuxed(packets: list[Any], start: float, duration: float, source: Source) -> _Piece:
    context = packets[0].stream.codec_context
    width, height = context.width, context.height
    try:
        data, extension = remux(packets)
    except DecodeError as error:
        raise DecodeError(f"its picture can't be copied ({error}); try --transcode train") from None
    return _Piece(start, duration, data, extension, float(source.rate), width, height)


def _with_sound(piece: _Piece, pcm_S: Sound | None, offset: float) -> ClipMedia:
    first, count = round(piece.start * SAMPLE_RATE), round(piece.duration * SAMPLE_RATE)
    part_S = pcm_S[max(0, first) : first + count] if pcm_S is not None else None
    if part_S is not None and len(part_S) < MIN_COVER * count:
        part_S = None
    if part_S is not None:
        part_S = np.pad(part_S, (0, count - len(part_S)))
    return ClipMedia(
        start=offset + piece.start,
        duration=piece.duration,
        video=piece.video,
        video_ext=piece.video_ext,
        fps=piece.fps,
        width=piece.width,
        height=piece.height,
        audio=encode_flac(part_S, SAMPLE_RATE) if part_S is not None else b"",
        pcm_S=part_S,
    )


def check(clip: ClipMedia, whole: bool) -> None:
    """Reads a written clip back as the loader will: start, middle and end, or the `whole` of it.

    What we encoded is sound where its ends are; a copied stream may be damaged anywhere.

    Raises:
        DecodeError: the loader's decoder can't read it.
    """
    if clip.video:
        try:
            steps = max(2, round(4 * clip.duration)) if whole else 2
            decode_video(clip.video, [clip.duration * i / steps for i in range(steps + 1)])
        except DecodeError as error:
            raise DecodeError(f"its picture can't be read back ({error}); try --transcode train") from None
