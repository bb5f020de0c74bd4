"""Writing a video with its audio, frame by frame: H.264 and AAC in MP4, audio in time with the frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from avpretrain.core.files import atomic_path
from avpretrain.methods.speaker.config import FPS, SAMPLE_RATE


class VideoFile:
    """An open file, to which frames and their audio are added in turn.

    Args:
        container: open for writing.
        width: pixels; even.
        height: pixels; even.
    """

    def __init__(self, container: Any, width: int, height: int) -> None:
        self._container = container
        self._video = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20"})
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.codec_context.max_b_frames, self._video.codec_context.thread_count = 0, 2
        self._audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=64_000)
        self._frames = self._samples = 0

    def add(self, rgb_HWC: NDArray[np.uint8], waveform_S: NDArray[np.float32]) -> None:
        """One frame, brought to the file's size, and the audio from its beginning to that of the next."""
        size = self._video.width, self._video.height
        frame = av.VideoFrame.from_ndarray(rgb_HWC, format="rgb24").reformat(*size, format="yuv420p", threads=1)
        frame.pts, frame.time_base = self._frames, Fraction(1, FPS)
        self._container.mux(self._video.encode(frame))
        samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform_S)[None], format="fltp", layout="mono")
        # Without a time the encoder would not tell by how much its output is late, and audio would lag by 64 ms.
        samples.sample_rate, samples.pts, samples.time_base = SAMPLE_RATE, self._samples, Fraction(1, SAMPLE_RATE)
        self._container.mux(self._audio.encode(samples))
        self._frames, self._samples = self._frames + 1, self._samples + len(waveform_S)

    def close(self) -> None:
        """Writes what the encoders hold back."""
        self._container.mux(self._video.encode())
        self._container.mux(self._audio.encode())


@contextmanager
def video_file(path: Path, width: int, height: int) -> Iterator[VideoFile]:
    """A file at `path`, there once the block has succeeded.

    Raises:
        UserError: it can't be written there.
    """
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        file = VideoFile(container, width, height)
        yield file
        file.close()
