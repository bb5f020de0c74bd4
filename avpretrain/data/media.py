"""Reading a source file from front to back, once, whatever its container: audio as one array, video as a stream.

What a player shows and plays at time t stands at t: by timestamps, edit lists and stream dispositions, never by
counting samples or frames. Times are seconds from the file's start (the earlier of its two streams), or from the start
of the wanted segment. What headers claim is used only to refuse a file early, and for how long a last frame stays;
other lengths come from what decodes. S samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avpretrain.data.choices import Limits
from avpretrain.data.container import (
    NOT_FINITE,
    DecodeError,
    audio_streams,
    average_rate,
    check_sample_rate,
    open_media,
    video_streams,
)
from avpretrain.data.decode import Sound

SAMPLE_RATE = 16_000

AUDIO_EXTENSIONS = frozenset(
    {
        ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".au",
        ".amr", ".ac3",
    }
)  # fmt: skip
"""Files that promise audio; a single image in one is its cover."""

MAX_BAD_SHARE = 0.05
"""Share of a stream's packets that may fail to decode (one always may: the last, where a file breaks off)."""
MAX_GAP_SECONDS = 60.0
"""Longest time that one frame may be shown without audio."""
MIN_COVER = 0.5
"""Share of a time that has a modality if it is covered by it."""
MAX_DRIFT = 0.02
"""Seconds by which audio may stand apart from its timestamps before silence is put in or samples are dropped."""
HELD = 0.25
"""Seconds by which audio or container must outlast the last frame for it to be shown until their end."""
LEAST_TOLD = 0.05
"""Amounts of what was dropped that are below this are not worth a word: part of a packet, in seconds."""
UNKNOWN_FRAME = 0.125
"""Seconds for which a frame is shown of which the file does not say it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a file that belongs to the data set, in seconds."""

    start: float
    end: float
    is_whole_file: bool | None = field(default=None, compare=False, repr=False)
    """Whether the file is this part, cut already, rather than the whole recording; None = its length tells."""


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
        segment: the part that is wanted; a file hardly longer than the segment is taken to be that part, already cut,
            unless the segment says which it is.

    Attributes:
        dropped: what was left out or filled in so far: amounts by description, in the unit with which it begins.

    Raises:
        DecodeError: not a media file, over the limits, or too short for the segment.
    """

    def __init__(self, path: Path, segment: Segment | None, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.dropped = defaultdict[str, float](float)
        self._spans: list[tuple[float, float]] | None = None
        with open_media(path) as container:
            if len(container.streams) > limits.max_streams:
                raise DecodeError(f"has {len(container.streams)} streams, more than {limits.max_streams}")
            video, audio = self._choose(container)
            self.has_video, self.has_audio = video is not None, audio is not None
            if video is not None:
                self._check_size(video.codec_context.width, video.codec_context.height)
            if audio is not None and audio.codec_context.sample_rate:
                check_sample_rate(audio.codec_context.sample_rate)
            self.rate = average_rate(video) if video else Fraction(0)
            """Frames a second; 0 = no video, or unknown."""
            self.aspect = _aspect(video)
            """Width of a pixel over its height."""
            starts = [float(s.start_time * s.time_base) for s in (video, audio) if s and s.start_time is not None]
            seconds = float(container.duration / av.time_base) if container.duration else 0.0
            whole = segment is None or _is_cut_already(segment, seconds)
            self.segment = None if whole else segment
            self.offset = 0.0 if self.segment is None else self.segment.start
            """Seconds of the file before time zero."""
            self.zero = min(starts, default=0.0) + self.offset
            self.seconds = limits.max_hours * 3600
            self.ends_early = segment is not None
            """Whether the file may last longer than `seconds`, which is where the segment ends."""
            if segment is not None:
                self.seconds = min(self.seconds, segment.end - segment.start)
            elif seconds > self.seconds:
                raise DecodeError(f"claims {seconds / 3600:.1f} h, more than {limits.max_hours:g} h")

    def _choose(self, container: Any) -> tuple[Any | None, Any | None]:
        """The streams of video and audio that are read; counts the others."""
        videos, audios = video_streams(container), audio_streams(container)
        covers = sum(1 for s in container.streams.video if s.codec_context is not None) - len(videos)
        if videos and audios and self.path.suffix.lower() in AUDIO_EXTENSIONS and self._is_cover(videos[0]):
            covers, videos = covers + len(videos), []
        self._indices = videos[0].index if videos else -1, audios[0].index if audios else -1
        self.dropped["cover images"] += covers
        self.dropped["further video streams"] += max(0, len(videos) - 1)
        self.dropped["further audio streams"] += max(0, len(audios) - 1)
        return (videos or [None])[0], (audios or [None])[0]

    def _is_cover(self, stream: Any) -> bool:
        """Whether a video stream is a single image."""
        packets = 0
        with open_media(self.path) as container:
            try:
                for packet in container.demux(container.streams[stream.index]):
                    packets += packet.size > 0
                    if packets > 1:
                        return False
            except av.FFmpegError:
                return False
        return True

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
        """(time, frame) of what decodes, until the end of the segment or limit; at last (end, None) where it is cut."""
        following = 0.0
        for packet in self._packets(container, stream):
            tally.total += 1
            try:
                frames = packet.decode()
            except av.FFmpegError:
                tally.bad += 1
                continue
            for frame in frames:
                time = frame.time - self.zero if frame.pts is not None else following
                following = time + self._length(frame)
                if time >= self.seconds:
                    self._refuse_longer()
                    yield self.seconds, None
                    return
                yield time, frame

    def _length(self, frame: Any) -> float:
        """Seconds that a frame lasts, as far as it is known."""
        if isinstance(frame, av.AudioFrame):
            return float(frame.samples / frame.sample_rate)
        return float(1 / self.rate) if self.rate else float(_duration(frame)) or UNKNOWN_FRAME

    def _refuse_longer(self) -> None:
        if not self.ends_early:
            raise DecodeError(f"lasts more than {self.limits.max_hours:g} h")

    def sound(self, sample_rate: int) -> Sound | None:
        """All audio as mono PCM from time zero on, every sample where its timestamp says; silence fills gaps.

        Returns:
            None where nothing decodes; `heard` says which times are decoded rather than filled.

        Raises:
            DecodeError: it is too long or too damaged.
        """
        self._spans = []
        with open_media(self.path) as container:
            if not self.has_audio:
                return None
            tally = _Tally("audio")
            joined = _Joined(sample_rate)
            stream = container.streams[self._indices[1]]
            for time, frame in self._decoded(container, stream, tally):
                if frame is None:
                    continue
                if not _finite(frame):  # resampled, these would be clicks of full scale
                    if stream.codec_context.name.startswith("pcm_"):
                        raise DecodeError(NOT_FINITE)
                    tally.bad += 1  # lossy codecs give such where a packet is damaged
                    continue
                joined.add(time, frame)
            tally.check()
            pcm_S = joined.finish()
        self._count("packets of audio that do not decode", tally.bad)
        self._count("s of gaps in the audio, filled with silence", joined.filled / sample_rate)
        self._count("s of audio that overlapped what came before it", joined.overlapped / sample_rate)
        if pcm_S is None or len(pcm_S) == 0:
            return None
        self._spans = [(start / sample_rate, stop / sample_rate) for start, stop in joined.spans]
        return pcm_S[: round(self.seconds * sample_rate)]

    def tell(self, dropped: dict[str, float] | None) -> None:
        """Adds what was dropped so far to other amounts, except what is not worth a word."""
        for what, amount in self.dropped.items():
            if dropped is not None and amount >= LEAST_TOLD:
                dropped[what] = dropped.get(what, 0) + amount

    def _count(self, what: str, amount: float) -> None:
        """Notes something as dropped, once however often the stream is read."""
        self.dropped[what] = max(self.dropped[what], amount)

    @property
    def spans(self) -> list[tuple[float, float]]:
        """Start and end of each stretch of audio that decodes, ascending, in seconds."""
        if self._spans is None:
            try:
                self.sound(16_000)
            except DecodeError:
                self._spans = []
        return self._spans or []

    def heard(self, start: float, end: float) -> float:
        """Seconds of decoded audio between two times."""
        return sum(max(0.0, min(end, stop) - max(start, begin)) for begin, stop in self.spans)

    def frames(self) -> Iterator[tuple[float, Any]]:
        """(time, PyAV frame), ascending in time, from the last frame before time zero on; at last (end, None).

        The last frame is shown until the audio ends, or the container.

        Raises:
            DecodeError: too damaged, too large, or a frame stands for more than a minute without audio.
        """
        with open_media(self.path) as container:
            stream = container.streams[self._indices[0]]
            tally = _Tally("video")
            before: tuple[float, Any] | None = None
            unordered, end = 0, None
            for time, frame in self._decoded(container, stream, tally):
                if frame is None:
                    end = time
                    break
                self._check_size(frame.width, frame.height)
                if before is not None and time <= before[0]:
                    unordered += 1
                    continue
                if before is not None:
                    self._check_gap(before[0], time)
                    if time > 0:
                        yield before
                before = time, frame
            tally.check()
            self._count("packets of video that do not decode", tally.bad)
            self._count("frames whose time does not follow the frame before", unordered)
            if before is not None:
                yield before
                if end is None:
                    end = self._end(container, stream, before[0], _duration(before[1]), self._length(before[1]))
                yield end, None

    def _check_gap(self, start: float, end: float) -> None:
        gap = end - start
        if gap > MAX_GAP_SECONDS and self.heard(max(0.0, start), end) < MIN_COVER * (end - max(0.0, start)):
            raise DecodeError(f"has a gap of {gap:.0f} s between two frames")

    def _end(self, container: Any, stream: Any, last: float, duration: float, usual: float) -> float:
        """Until when the last frame is shown.

        Args:
            last: its time.
            duration: seconds that the container gives it; 0 = unknown.
            usual: seconds for which a frame is shown.
        """
        end = last + usual
        ends = [stop for _, stop in self.spans[-1:]]
        if duration <= MAX_GAP_SECONDS:
            ends.append(last + duration)
        if container.duration:
            claimed = ((container.start_time or 0) + container.duration) / av.time_base - self.zero
            shown = self.zero + last + max(usual, duration)
            if claimed - end <= MAX_GAP_SECONDS and _is_complete(self.path, container, stream, shown):
                ends.append(claimed)
            if 0 < max(ends, default=end) - claimed <= HELD:  # the codec's padding
                ends = [claimed]
        longest = min(max(ends, default=end), self.seconds)
        if longest - end <= HELD:
            return min(end, self.seconds)
        self._count("s in which the last frame stays, since the audio or the container lasts longer", longest - end)
        return longest

    def packets(self) -> Iterator[tuple[float, Any]]:
        """(time, packet of the video) in decoding order; at last (end, None), while packets are still valid.

        Packets that are only decoded and never shown come too: see `is_hidden`.

        Raises:
            DecodeError: it is too long, or a frame stands for more than a minute without audio.
        """
        last: float | None = None
        duration, end = 0.0, None
        with open_media(self.path) as container:
            stream = container.streams[self._indices[0]]
            for packet in self._packets(container, stream):
                if packet.pts is None or packet.size == 0:
                    continue
                time = float(packet.pts * packet.time_base) - self.zero
                decoded_at = time if packet.dts is None else float(packet.dts * packet.time_base) - self.zero
                if min(time, decoded_at) >= self.seconds:
                    self._refuse_longer()
                    end = self.seconds
                    break
                if not packet.is_discard and (last is None or time >= last):
                    self._check_gap(time if last is None else last, time)
                    last, duration = time, float((packet.duration or 0) * packet.time_base)
                yield time, packet
            if end is None:
                usual = duration or float(1 / (self.rate or 8))
                end = self._end(container, stream, last or 0.0, duration, usual)
            yield end, None

    def is_hidden(self, time: float, packet: Any) -> bool:
        """Whether a packet is only decoded, since an edit list hides it or it lies before the segment."""
        return bool(packet.is_discard) or (self.segment is not None and time < -1e-6)


def _is_cut_already(segment: Segment, seconds: float) -> bool:
    """Whether a file of so many seconds (0 = unknown) is the segment itself.

    Raises:
        DecodeError: it is neither that, nor long enough to hold it.
    """
    length = segment.end - segment.start
    cut = 0 < seconds <= length + 1.0 if segment.is_whole_file is None else segment.is_whole_file
    if not cut and 0 < seconds <= segment.start:
        raise DecodeError(
            "is too short to be the recording from which its segment is to be cut "
            f"(lasts {seconds:.1f} s, the segment is {segment.start:g} to {segment.end:g} s; "
            "a file that is the segment itself is named ID_START)"
        )
    return cut


def _is_complete(path: Path, container: Any, stream: Any, end: float) -> bool:
    """Whether the file is known not to break off early, so that the container's duration can be believed.

    Args:
        end: of the last frame, by the container's clock.
    """
    if "mp4" in container.format.name:  # its index tells when the stream should end
        return (
            bool(stream.duration)
            and end > float(((stream.start_time or 0) + stream.duration) * stream.time_base) - HELD
        )
    return "matroska" in container.format.name and _holds_its_segment(path)


def _holds_its_segment(path: Path) -> bool:
    """Whether a Matroska file is as long as its segment claims; not where the segment claims no size."""
    with path.open("rb") as file:
        head = file.read(4096)
    place = head.find(b"\x18\x53\x80\x67") + 4
    if not head.startswith(b"\x1a\x45\xdf\xa3") or not 4 <= place < len(head) - 8 or not head[place]:
        return False
    length = 9 - head[place].bit_length()
    size = int.from_bytes(head[place : place + length], "big") & ((1 << 7 * length) - 1)
    return size != (1 << 7 * length) - 1 and place + length + size <= path.stat().st_size


def _duration(frame: Any) -> float:
    return float((frame.duration or 0) * frame.time_base) if frame.time_base else 0.0


def _aspect(video: Any) -> float:
    ratio = float(video.sample_aspect_ratio or 1) if video is not None else 1.0
    return ratio if 0.1 <= ratio <= 10 else 1.0


def _finite(frame: Any) -> bool:
    """Whether all samples of a frame are finite; integers are."""
    return frame.format.name[:3] not in ("flt", "dbl") or bool(np.isfinite(frame.to_ndarray()).all())


class _Joined:
    """Decoded frames of audio, resampled and laid where their times say.

    Attributes:
        spans: start and stop of each stretch of decoded samples, ascending.
        filled: samples of silence between frames.
        overlapped: samples dropped since a frame began before the one before it ended.
    """

    def __init__(self, sample_rate: int) -> None:
        self.rate = sample_rate
        self.parts: list[np.ndarray] = []
        self.spans: list[tuple[int, int]] = []
        self.filled = self.overlapped = 0
        self.resampler: Any = None
        self.kind: tuple[object, ...] = ()
        self.end = 0.0
        """Where the next frame begins if nothing is lost."""
        self.count = 0
        """Samples laid so far."""
        self.skip = 0
        """Samples to drop next."""

    def add(self, time: float, frame: Any) -> None:
        """Lays a frame at its time: after silence if it is late, without its beginning if it is early.

        Small errors of single timestamps are left alone; what counts is how far the samples so far have drifted.
        """
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        check_sample_rate(frame.sample_rate)
        if abs(time - self.end) > MAX_DRIFT or kind != self.kind:
            self._flush()
            self._move(round(time * self.rate))
            self.resampler = av.AudioResampler(format="s16", layout="mono", rate=self.rate)
            self.kind, self.end = kind, time
        self.end += frame.samples / frame.sample_rate
        frame.pts = None
        self._take(self.resampler.resample(frame))

    def _move(self, place: int) -> None:
        """Continues at a sample."""
        gap = place - self.count
        self.skip = max(0, -gap)
        if self.spans:
            self.filled += max(0, gap)
            self.overlapped += self.skip
        if gap > 0:
            self.parts.append(np.zeros(gap, np.int16))
            self.count = place

    def _take(self, frames: list[Any]) -> None:
        for frame in frames:
            part_S = frame.to_ndarray()[0][self.skip :]
            self.skip -= frame.samples - len(part_S)
            if not len(part_S):
                continue
            self.parts.append(part_S)
            start, self.count = self.count, self.count + len(part_S)
            joins = bool(self.spans) and self.spans[-1][1] == start
            self.spans.append((self.spans.pop()[0] if joins else start, self.count))

    def _flush(self) -> None:
        if self.resampler is not None:
            self._take(self.resampler.resample(None))

    def finish(self) -> np.ndarray | None:
        """Everything as one array; none where nothing was added."""
        self._flush()
        return np.concatenate(self.parts) if self.parts else None
