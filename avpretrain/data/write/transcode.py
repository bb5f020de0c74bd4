"""One source file to clips, re-encoded for training or copied. S samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from avpretrain.data.choices import Limits, Need
from avpretrain.data.container import DecodeError
from avpretrain.data.decode import Sound, decode_video
from avpretrain.data.media import HELD, MIN_COVER, SAMPLE_RATE, Segment, Source
from avpretrain.data.write.encode import ClipEncoder, encode_flac, prepare, remux
from avpretrain.data.write.settings import TranscodeConfig

MIN_CLIP_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipMedia:
    """One clip, encoded."""

    start: float
    """Seconds into the source file."""
    duration: float
    video: bytes
    """Empty = no video."""
    video_ext: str
    fps: float
    width: int
    height: int
    audio: bytes
    """FLAC; empty = no audio."""
    pcm_S: Sound | None
    """The same audio, decoded."""


def cut(
    path: Path,
    segment: Segment | None,
    need: Need,
    cfg: TranscodeConfig,
    limits: Limits,
    dropped: dict[str, float] | None = None,
) -> Iterator[ClipMedia]:
    """The clips of one file.

    Cuts run along the video, or along the audio where there is no video. A clip has audio if at least half of it is
    covered by audio that decodes; the rest is silence. Likewise a clip has video if it begins within its first half.

    Args:
        dropped: takes up what was left out or filled in: amounts by description, in the unit with which it begins.

    Raises:
        DecodeError: the file can't be decoded, is over the limits, or has not what `need` asks for.
    """
    source = Source(path, segment, limits)
    if need in ("both", "video") and not source.has_video:
        raise DecodeError("has no video")
    if need in ("both", "audio") and not source.has_audio:
        raise DecodeError("has no audio")
    pcm_S = source.sound(SAMPLE_RATE)
    if need in ("both", "audio") and pcm_S is None:
        raise DecodeError("has no audio that decodes" + _where(source))
    if not source.has_video and pcm_S is None:
        raise DecodeError("has neither video nor audio" + _where(source))
    kept = 0
    pieces = _pieces(source, pcm_S, cfg)
    for number, piece in enumerate(pieces):
        if piece.duration < (cfg.min_seconds if number else MIN_CLIP_SECONDS):
            if piece.duration >= HELD:
                source.dropped[f"clips at the end of their file, shorter than {cfg.min_seconds:g} s"] += 1
            continue
        clip = _with_sound(piece, pcm_S, source)
        lacking = [name for name, there in (("audio", clip.audio), ("video", clip.video)) if not there]
        if len(lacking) == 2 or need in lacking or (need == "both" and lacking):
            source.dropped[f"clips with less than half of their {' and '.join(lacking)}"] += 1
            continue
        check(clip, whole=cfg.transcode == "copy")
        kept += 1
        yield clip
    if not kept:
        raise DecodeError(f"has no clip of {MIN_CLIP_SECONDS:g} s or more with {_WANTED[need]}" + _where(source))
    source.tell(dropped)


def _where(source: Source) -> str:
    """What a file has, in brackets: where its audio lies."""
    part = "" if source.segment is None else f" in its segment of {source.segment.start:g} to {source.segment.end:g} s"
    spans = source.spans
    heard = f"decodes from {spans[0][0]:.1f} to {spans[-1][1]:.1f} s" if spans else "does not decode"
    return f" (its audio {heard}{part})" if source.has_audio else ""


_WANTED = {
    "both": "video and audio",
    "audio": "audio",
    "video": "video",
    "any": "video or audio",
    "auto": "content",
}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A clip before its audio is cut; times from the source's zero."""

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


def on_grid(frames: Iterator[tuple[float, Any]], fps: Fraction, first: int = 0) -> Iterator[Any]:
    """For times 0, 1/fps, 2/fps ... the frame nearest to each, until the last frame has been shown for its time.

    Args:
        frames: as `Source.frames` gives them.
        first: number of the first of these times that is wanted.
    """
    count, before = first, None
    for time, frame in frames:
        if frame is None and before is not None:
            while count / fps < time - 1e-6:
                yield before[1]
                count += 1
            return
        while before is not None and count / fps <= (before[0] + time) / 2:
            yield before[1]
            count += 1
        before = time, frame
    raise DecodeError("no frame of its video decodes")


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

    frames = source.frames()
    beginning = next(frames, (0.0, None))
    if per_clip is not None:
        length = float(per_clip / fps)
        while beginning[0] > (number + 1 - MIN_COVER) * length:  # these clips end before the video has well begun
            yield _Piece(number * length, length)
            number += 1
    for frame in on_grid(itertools.chain([beginning], frames), fps, number * (per_clip or 0)):
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


Timed = tuple[float, Any]
"""A packet and its time."""


def _copied(source: Source, cfg: TranscodeConfig) -> Iterator[_Piece]:
    """Clips of at least `clip_seconds` that end where the next key frame stands.

    Where an edit list or a segment begins between key frames, the packets from the key frame on are copied and hidden.
    """
    run: list[Timed] = []
    start = math.inf
    """Of what is shown of the run."""
    for time, packet in source.packets():
        if packet is None:
            yield from _last_copied(source, run, time, cfg)
            return
        hidden = source.is_hidden(time, packet)
        if packet.is_keyframe:
            if start == math.inf:
                if not _stays(source, run, time):
                    run = []
            elif hidden:  # the next entry of an edit list
                yield _remuxed(source, run)
                run, start = [], math.inf
            elif cfg.clip_seconds and time - start >= cfg.clip_seconds - 1e-3:
                yield _remuxed(source, run, time)
                run, start = [], math.inf
        if run or packet.is_keyframe:
            run.append((time, packet))
            start = start if hidden else min(start, time)


def _stays(source: Source, run: list[Timed], time: float) -> bool:
    """Whether a frame before time zero is still shown after it, for longer than a frame usually is."""
    return time > float(1 / (source.rate or 8)) and any(not packet.is_discard for _, packet in run)


def _last_copied(source: Source, run: list[Timed], end: float, cfg: TranscodeConfig) -> Iterator[_Piece]:
    """The last clip, or several where a single key frame stays for longer than one."""
    if len(run) == 1 and cfg.clip_seconds:
        time, packet = run[0]
        while end - time > cfg.clip_seconds + 1e-3:
            yield _remuxed(source, [(time, packet)], time + cfg.clip_seconds)
            time += cfg.clip_seconds
        run = [(time, packet)]
    if run:
        yield _remuxed(source, run, end)


def _remuxed(source: Source, run: list[Timed], end: float | None = None) -> _Piece:
    """A run of packets as a clip; it begins with the first that is shown.

    Args:
        end: of the clip; none = where its last frame ends.
    """
    stream = run[0][1].stream
    while len(run) > 1 and (run[-1][1].is_discard or (end is not None and run[-1][0] >= end - 1e-6)):
        run = run[:-1]
    shown = [timed for timed in run if not source.is_hidden(*timed)]
    start, first = min(shown, key=lambda timed: timed[0], default=(math.inf, None))
    if shown and shown[0] is run[0]:
        start, first = run[0]
    elif _stays(source, run, start):  # what is shown at time zero began before it
        _, first = max((timed for timed in run if timed not in shown), key=lambda timed: timed[0])
        start, first.pts = 0.0, round(source.zero / first.time_base)
    if first is None:
        raise DecodeError("its edit list shows no frame")
    if end is None:
        end = max(time + float((packet.duration or 0) * packet.time_base) for time, packet in shown)
    context = stream.codec_context
    try:
        data, extension, left_out = remux([packet for _, packet in run], first.pts)
    except DecodeError as error:
        raise DecodeError(f"its video can't be copied ({error}); try --transcode train") from None
    source.dropped["frames before the first key frame of a copied clip"] += left_out
    return _Piece(start, end - start, data, extension, float(source.rate), context.width, context.height)


def _with_sound(piece: _Piece, pcm_S: Sound | None, source: Source) -> ClipMedia:
    first, count = round(piece.start * SAMPLE_RATE), round(piece.duration * SAMPLE_RATE)
    part_S = None
    heard = source.heard(piece.start, piece.start + piece.duration) * SAMPLE_RATE
    if pcm_S is not None and heard >= 1 and heard + 1 >= MIN_COVER * count:
        part_S = pcm_S[max(0, first) : max(0, first + count)]
        before = min(count, max(0, -first))
        part_S = np.pad(part_S, (before, count - before - len(part_S)))
    return ClipMedia(
        start=source.offset + piece.start,
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

    What we encoded is intact where its ends are; a copied stream may be damaged anywhere.

    Raises:
        DecodeError: the loader's decoder can't read it.
    """
    if clip.video:
        try:
            steps = max(2, round(4 * clip.duration)) if whole else 2
            decode_video(clip.video, [clip.duration * i / steps for i in range(steps + 1)])
        except DecodeError as error:
            raise DecodeError(f"its video can't be read back ({error}); try --transcode train") from None
