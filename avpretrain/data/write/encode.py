"""Frames and samples to the bytes of a clip: H.264 made for random access, FLAC, or a video stream copied as it is.

Everything is a pure function of its input for given versions of PyAV and soundfile: one thread, no dates, no tags.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile

from avpretrain.data.container import DecodeError, decoding
from avpretrain.data.decode import Sound, fit

_CONTAINERS = {"h264": "mp4", "hevc": "mp4", "mpeg4": "mp4", "av1": "mp4", "vp9": "mp4", "vp8": "webm"}
"""Container for a copied stream, by codec; others go into Matroska."""
_FORMATS = {"mp4": "mp4", "webm": "webm", "mkv": "matroska"}
_OPTIONS = {"fflags": "+bitexact"}


REPEATABLE = {"threads": "1", "mbtree": "0"}
"""x264 options without which equal frames give different bytes: threads race, and on processors with AVX-512 its
macroblock tree does so even in one thread (about one short clip in 150)."""


class ClipEncoder:
    """Encodes frames to H.264 in mp4 as they come.

    Key frames stand every `gop` frames and there are no B-frames, so that a reader decodes at most `gop` frames to get
    at one; `fastdecode` leaves out the deblocking filter and arithmetic coding.
    """

    def __init__(self, fps: Fraction, gop: int, crf: int) -> None:
        self.fps, self.gop, self.crf = fps, gop, crf
        self.buffer = io.BytesIO()
        self.container = av.open(self.buffer, "w", format="mp4", options=_OPTIONS)
        # key frames at fixed places only: none where the scene changes
        options = {"crf": str(crf), "preset": "veryfast", "tune": "fastdecode", "sc_threshold": "0", **REPEATABLE}
        self.stream: Any = self.container.add_stream("libx264", rate=fps, options=options)
        self.count = 0

    def _start(self, width: int, height: int, like: Any) -> None:
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        context = self.stream.codec_context
        context.gop_size, context.max_b_frames, context.thread_count = self.gop, 0, 1
        context.colorspace, context.color_range = like.colorspace, like.color_range
        context.color_primaries, context.color_trc = like.color_primaries, like.color_trc

    def add(self, frame: Any) -> None:
        """Appends a frame in yuv420p; the first one sets the size."""
        with decoding():
            if self.count == 0:
                self._start(frame.width, frame.height, frame)
            frame.pts, frame.time_base, frame.pict_type = self.count, 1 / self.fps, 0
            self.container.mux(self.stream.encode(frame))
            self.count += 1

    def finish(self) -> bytes:
        """The whole file; call once."""
        with decoding():
            self.container.mux(self.stream.encode())
            self.container.close()
        return self.buffer.getvalue()


def prepare(frame: Any, short_side: int, aspect: float) -> Any:
    """A PyAV frame turned upright, with square pixels, its shorter side at most `short_side` (0 = any), in yuv420p."""
    turns = round(frame.rotation / 90) % 4
    width, height = frame.width * aspect, float(frame.height)
    to_width, to_height = fit(width, height, short_side if short_side < min(width, height) else 0)
    size = max(2, round(to_width / 2) * 2), max(2, round(to_height / 2) * 2)
    with decoding():
        if turns:
            turned = np.ascontiguousarray(
                np.rot90(frame.reformat(*size, "rgb24", interpolation="AREA", threads=1).to_ndarray(), turns)
            )
            return av.VideoFrame.from_ndarray(turned, format="rgb24").reformat(format="yuv420p", threads=1)
        return frame.reformat(*size, "yuv420p", interpolation="AREA", threads=1)  # several would race for the bytes


def remux(packets: list[Any], zero: int) -> tuple[bytes, str, int]:
    """Packets from one key frame to the next cut, unchanged, as a file of their own.

    Args:
        packets: in decoding order; the first is a key frame.
        zero: timestamp of the first frame that is shown, at which the file's time begins. An edit list hides those
            before it.

    Returns:
        the file, its extension, and how many packets were left out, since they refer to frames before the cut.

    Raises:
        DecodeError: there is no container that can hold them.
    """
    stream, first = packets[0].stream, packets[0].pts
    codec = stream.codec_context.codec.canonical_name
    extension = _CONTAINERS.get(codec, "mkv")
    if zero > first:
        if extension == "webm":
            raise DecodeError(f"{codec} can be cut at key frames only")
        extension = "mp4"
    buffer, left_out = io.BytesIO(), 0
    with decoding(), av.open(buffer, "w", format=_FORMATS[extension], options=_OPTIONS) as container:
        # a decoder may bear another name than its codec (libdav1d), by which no encoder is found
        other_name = {"opaque": True} if stream.codec_context.codec.name != codec else {}
        copy = container.add_stream_from_template(stream, **other_name)
        for packet in packets:
            if packet.pts < first:  # leading frames of an open group refer to frames before the cut
                left_out += 1
                continue
            packet.pts -= zero
            packet.dts = None if packet.dts is None else packet.dts - zero
            packet.stream = copy
            container.mux(packet)
    return buffer.getvalue(), extension, left_out


def encode_flac(pcm_S: Sound, sample_rate: int) -> bytes:
    """Mono PCM as FLAC."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm_S, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
