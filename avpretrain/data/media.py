"""Reading a source file from front to back, once, whatever its container: sound as one array, pictures as a stream.

Times are seconds from the file's start (the earlier of its two streams), or from the start of the wanted segment. What
headers claim is used only to refuse a file early; lengths come from what decodes. S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avpretrain.data.decode import (
    DecodeError,
    Sound,
    average_rate,
    check_sample_rate,
    open_media,
    picture_stream,
    sound_stream,
)

MAX_BAD_SHARE = 0.05
"""Share of a stream's packets that may fail to decode (one always may: the last, where a file breaks off)."""
MAX_GAP_SECONDS = 60.0
"""Longest time that one frame may be shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one source file may ask for; protects from decompression bombs."""

    max_hours: float = 2.0
    """Longest file."""
    max_megapixels: float = 40.0
    """Largest frame, in millions of pixels (8K = 33)."""
    max_streams: int = 64
    """Most streams in a file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a file that belongs to the data set, in seconds."""

    start: float
    end: float


@dataclass
class _Tally:
    """Packets that decode and packets that do not."""

    what: str
    total: int = 0
    bad: int = 0

    def check(self) -> None:
        if self.bad > max(1, MAX_BAD_SHARE * self.total):
            raise DecodeError(f"{self.bad} of {self.total} packets of {self.what} do not decode")


class Source:
    """An open media file.

    Args:
        path: the file.
        segment: the part that is wanted; a file hardly longer than the segment is taken to be that part, already cut.

    Raises:
        DecodeError: not a media file, or over the limits.
    """

    def __init__(self, path: Path, segment: Segment | None, limits: Limits) -> None:
        self.path, self.limits = path, limits
        with open_media(path) as container:
            if len(container.streams) > limits.max_streams:
                raise DecodeError(f"has {len(container.streams)} streams, more than {limits.max_streams}")
            video, audio = picture_stream(container), sound_stream(container)
            self.has_video, self.has_audio = video is not None, audio is not None
            if video is not None:
                self._check_size(video.codec_context.width, video.codec_context.height)
            if audio is not None and audio.codec_context.sample_rate:
                check_sample_rate(audio.codec_context.sample_rate)
            self.rate = average_rate(video) if video else Fraction(0)
            """Frames a second; 0 = no picture, or unknown."""
            self.aspect = _aspect(video)
            """Width of a pixel over its height."""
            starts = [float(s.start_time * s.time_base) for s in (video, audio) if s and s.start_time is not None]
            seconds = float(container.duration / av.time_base) if container.duration else 0.0
            whole = segment is None or 0 < seconds <= segment.end - segment.start + 1.0
            self.segment = None if whole else segment
            self.offset = 0.0 if self.segment is None else self.segment.start
            """Seconds of the file before time zero."""
            self.zero = min(starts, default=0.0) + self.offset
            self.seconds = limits.max_hours * 3600
            if self.segment is not None:
                self.seconds = min(self.seconds, self.segment.end - self.segment.start)
            elif seconds > self.seconds:
                raise DecodeError(f"claims {seconds / 3600:.1f} h, more than {limits.max_hours:g} h")

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.limits.max_megapixels * 1e6:
            raise DecodeError(f"has frames of {width}x{height}, more than {self.limits.max_megapixels:g} megapixels")

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """The stream's packets from a little before time zero; a file that breaks off in the middle just ends."""
        stream.thread_type = "NONE"
        if stream.type == "video":
            stream.codec_context.options = {"max_pixels": str(round(self.limits.max_megapixels * 1e6))}
        if self.segment is not None:
            container.seek(int((self.zero - 1.0) / stream.time_base), stream=stream)
        try:
            yield from container.demux(stream)
        except av.FFmpegError:
            return

    def _decoded(self, container: Any, stream: Any, tally: _Tally) -> Iterator[tuple[float, Any]]:
        """(time, frame) of what decodes, until the end of the segment or limit."""
        time = 0.0
        for packet in self._packets(container, stream):
            tally.total += 1
            try:
                frames = packet.decode()
            except av.FFmpegError:
                tally.bad += 1
                continue
            for frame in frames:
                time = frame.time - self.zero if frame.pts is not None else time
                if time >= self.seconds:
                    if self.segment is None:
                        raise DecodeError(f"lasts more than {self.limits.max_hours:g} h")
                    return
                yield time, frame

    def sound(self, sample_rate: int) -> Sound | None:
        """All sound as mono PCM from time zero on; silence fills gaps. None where there is none.

        Raises:
            DecodeError: it is too long or too damaged.
        """
        with open_media(self.path) as container:
            stream = sound_stream(container)
            if stream is None:
                return None
            tally = _Tally("sound")
            joined = _Joined(sample_rate)
            for time, frame in self._decoded(container, stream, tally):
                joined.add(time, frame)
            tally.check()
            pcm_S = joined.finish()
        if pcm_S is None or len(pcm_S) == 0:
            return None
        return pcm_S[: round(self.seconds * sample_rate)]

    def frames(self) -> Iterator[tuple[float, Any]]:
        """(time, PyAV frame), ascending in time, from the last frame before time zero on.

        Raises:
            DecodeError: too damaged, too large, or a frame stands for more than a minute.
        """
        with open_media(self.path) as container:
            stream = picture_stream(container)
            tally = _Tally("picture")
            before: tuple[float, Any] | None = None
            for time, frame in self._decoded(container, stream, tally):
                self._check_size(frame.width, frame.height)
                if before is not None and time <= before[0]:
                    continue
                if before is not None and time - before[0] > MAX_GAP_SECONDS:
                    raise DecodeError(f"has a gap of {time - before[0]:.0f} s between two frames")
                if before is not None and time > 0:
                    yield before
                before = time, frame
            tally.check()
            if before is not None:
                yield before

    def packets(self) -> Iterator[tuple[float, Any]]:
        """(time, packet of the picture) in decoding order; at last (end, None), while packets are still valid.

        Raises:
            DecodeError: it is too long.
        """
        end = 0.0
        with open_media(self.path) as container:
            for packet in self._packets(container, picture_stream(container)):
                if packet.pts is None or packet.size == 0:
                    continue
                time = float(packet.pts * packet.time_base) - self.zero
                if time >= self.seconds and packet.is_keyframe:
                    if self.segment is None:
                        raise DecodeError(f"lasts more than {self.limits.max_hours:g} h")
                    break
                end = max(end, time + float((packet.duration or 0) * packet.time_base))
                yield time, packet
            yield end, None


def _aspect(video: Any) -> float:
    ratio = float(video.sample_aspect_ratio or 1) if video is not None else 1.0
    return ratio if 0.1 <= ratio <= 10 else 1.0


class _Joined:
    """Decoded frames of sound, resampled and laid end to end where their times say."""

    def __init__(self, sample_rate: int) -> None:
        self.rate = sample_rate
        self.parts: list[np.ndarray] = []
        self.resampler: Any = None
        self.kind: tuple[object, ...] = ()
        self.skip = 0
        self.end: float | None = None

    def add(self, time: float, frame: Any) -> None:
        """Appends a frame; a gap of more than 0.1 s before it becomes silence."""
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        if self.end is None:
            self.skip = round(max(0.0, -time) * self.rate)
            self.end = min(0.0, time)
        check_sample_rate(frame.sample_rate)
        gap = time - self.end
        if gap > 0.1 or kind != self.kind:
            self._flush()
            self.resampler = av.AudioResampler(format="s16", layout="mono", rate=self.rate)
            self.kind = kind
            if gap > 0:
                self.parts.append(np.zeros(round(gap * self.rate), np.int16))
        self.end = time + frame.samples / frame.sample_rate
        frame.pts = None
        self._take(self.resampler.resample(frame))

    def _take(self, frames: list[Any]) -> None:
        self.parts += [frame.to_ndarray()[0] for frame in frames]

    def _flush(self) -> None:
        if self.resampler is not None:
            self._take(self.resampler.resample(None))

    def finish(self) -> np.ndarray | None:
        """Everything as one array, cut at time zero; none where nothing was added."""
        self._flush()
        return np.concatenate(self.parts)[self.skip :] if self.parts else None
