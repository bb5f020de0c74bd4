"""Where frames and audio come from: a file, or a camera and a microphone; 25 frames a second, each with its audio."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avpretrain.core.errors import UserError
from avpretrain.data.choices import Limits
from avpretrain.data.container import DecodeError
from avpretrain.data.decode import upright
from avpretrain.data.media import Source
from avpretrain.methods.speaker.config import FPS, FRAME_SAMPLES, SAMPLE_RATE
from avpretrain.methods.speaker.tracks.crops import at_grid, grey
from avpretrain.methods.speaker.tracks.cut import MAX_HOURS

BEHIND = 0.6
"""Seconds by which a camera's frames may wait before some are skipped."""
CLOSING = 2.0
"""Seconds that a device may take to give what a thread waits for, before the thread is left to itself."""
PICTURES = 30
"""Pictures of a camera that are kept at most."""


@dataclass(frozen=True)
class Moment:
    """A frame with its audio."""

    number: int
    """Its time is number / 25 s."""
    grey_HW: NDArray[np.uint8]
    rgb_HWC: NDArray[np.uint8] | None
    """Where it was asked for."""
    waveform_S: NDArray[np.float32]
    """The 640 samples from its time on."""


class FileInput:
    """A media file, read from front to back.

    Raises:
        UserError: it can't be read, or has no video.
    """

    endless = False

    def __init__(self, path: Path) -> None:
        self.name, self.notes = path.stem, list[str]()
        try:
            self._source = Source(path, None, Limits(max_hours=MAX_HOURS))
            if not self._source.has_video:
                raise DecodeError("has no video")
            pcm_S = self._source.sound(SAMPLE_RATE)
        except DecodeError as error:
            raise UserError(f"{path} {error}; name another video") from None
        if pcm_S is None:
            self.notes.append(f"{path} has no audio that decodes, so that nobody in it can be heard to speak")
        self._path, self._pcm_S, self.aspect = (
            path,
            np.zeros(0, np.int16) if pcm_S is None else pcm_S,
            self._source.aspect,
        )

    def moments(self, colour: bool) -> Iterator[Moment]:
        """All of them.

        Raises:
            UserError: the video is damaged.
        """
        try:
            for at in at_grid(self._source.frames(), causal=True):
                own_S = self._pcm_S[at.number * FRAME_SAMPLES : (at.number + 1) * FRAME_SAMPLES]
                waveform_S = np.zeros(FRAME_SAMPLES, np.float32)
                waveform_S[: len(own_S)] = own_S / np.float32(32768)
                yield Moment(at.number, grey(at.frame), upright(at.frame) if colour else None, waveform_S)
        except DecodeError as error:
            raise UserError(f"{self._path} {error}") from None


class Microphone:
    """16 kHz mono from a device, in a thread of its own.

    Args:
        container: an open PyAV container with audio.
    """

    def __init__(self, container: Any) -> None:
        self._container = container
        self._parts: list[NDArray[np.int16]] = []
        self._ready = threading.Condition()
        self._count, self._taken, self.ended, self._closed = 0, 0, False, False
        self.began = 0.0
        """When the first sample was heard, by time.monotonic."""
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        try:
            for frame in self._container.decode(audio=0):
                if self._closed:
                    break
                if not self.began:
                    self.began = time.monotonic() - frame.samples / frame.sample_rate
                frame.pts = None
                for part in resampler.resample(frame):
                    with self._ready:
                        self._parts.append(part.to_ndarray()[0])
                        self._count += len(self._parts[-1])
                        self._ready.notify()
        except av.FFmpegError:
            pass
        finally:
            with self._ready:
                self.ended = True
                self._ready.notify()

    def close(self) -> None:
        """Ends the thread and lets go of the device; one that gives nothing for two seconds is left to it."""
        self._closed = True
        self._thread.join(CLOSING)
        if not self._thread.is_alive():
            self._container.close()

    def read(self, samples: int, timeout: float = 5.0) -> NDArray[np.float32] | None:
        """The next samples, once they are there; none when the device has ended.

        Raises:
            UserError: nothing came for so many seconds.
        """
        until = time.monotonic() + timeout
        with self._ready:
            while self._count - self._taken < samples and not self.ended:
                if not self._ready.wait(until - time.monotonic()):
                    raise UserError(f"no audio came from the microphone for {timeout:g} s; is it in use elsewhere?")
            if self._count - self._taken < samples:
                return None
            joined_S = np.concatenate(self._parts)
            self._parts = [joined_S[samples:]]
            self._taken += samples
        heard_S: NDArray[np.float32] = joined_S[:samples].astype(np.float32) / np.float32(32768)
        return heard_S

    @property
    def time(self) -> float:
        """When the next sample that is read was heard, by time.monotonic."""
        return self.began + self._taken / SAMPLE_RATE

    @property
    def waiting(self) -> float:
        """Seconds of audio that nobody has read."""
        with self._ready:
            return (self._count - self._taken) / SAMPLE_RATE


class CameraInput:
    """A camera, by OpenCV, and a microphone, by PyAV. The microphone's clock sets the time.

    Args:
        capture: an open cv2.VideoCapture.
        microphone: none = silence.
        name: of the camera.
    """

    aspect, endless = 1.0, True

    def __init__(self, capture: Any, microphone: Microphone | None, name: str) -> None:
        self.name, self.notes = name, list[str]()
        self._capture, self._microphone = capture, microphone
        self._pictures = deque[tuple[float, NDArray[np.uint8]]](maxlen=PICTURES)
        """With the time at which each came, by time.monotonic."""
        self._lock, self._seen, self._ended = threading.Lock(), threading.Event(), False
        self.skipped = 0
        """Frames that were left out since the frames before took too long."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        try:
            while not self._ended:
                there, bgr_HWC = self._capture.read()
                if not there:
                    break
                with self._lock:
                    self._pictures.append((time.monotonic(), bgr_HWC))
                self._seen.set()
        finally:
            self._ended = True
            self._seen.set()

    def _picture(self, at: float) -> NDArray[np.uint8]:
        """The newest picture that was there at a time, or else the oldest; those before it are let go."""
        with self._lock:
            while len(self._pictures) > 1 and self._pictures[1][0] <= at:
                self._pictures.popleft()
            return self._pictures[0][1]

    def moments(self, colour: bool) -> Iterator[Moment]:
        """Until the camera or the microphone ends.

        Raises:
            UserError: no picture or no audio comes.
        """
        if not self._seen.wait(10) or not self._pictures:
            raise UserError(f"no picture comes from {self.name}; is it in use elsewhere?")
        number, start, microphone = 0, time.monotonic(), self._microphone
        if microphone is not None and (early := int(microphone.waiting * SAMPLE_RATE)):
            microphone.read(early)  # heard before the first picture
        while not self._ended:
            waiting = (time.monotonic() - start) - number / FPS if microphone is None else microphone.waiting
            if waiting > BEHIND:
                late = int(waiting * FPS)
                if microphone is not None:
                    microphone.read(late * FRAME_SAMPLES)
                number, self.skipped = number + late, self.skipped + late
            if microphone is None:
                at, heard_S = start + number / FPS, np.zeros(FRAME_SAMPLES, np.float32)
                time.sleep(max(0.0, at + 1 / FPS - time.monotonic()))
            else:
                found_S, at = microphone.read(FRAME_SAMPLES), microphone.time - 1 / FPS
                if found_S is None:
                    return
                heard_S = found_S
            bgr_HWC = self._picture(at)
            rgb_HWC = np.ascontiguousarray(bgr_HWC[:, :, ::-1])
            brightness_HW = np.asarray(Image.fromarray(rgb_HWC).convert("L"))
            yield Moment(number, brightness_HW, rgb_HWC if colour else None, heard_S)
            number += 1

    def close(self) -> None:
        """Lets go of the camera, once its thread has read to the end of a picture, and of the microphone.

        A camera that gives nothing for two seconds is left to its thread: what is being read must not be released.
        """
        self._ended = True
        self._thread.join(CLOSING)
        if not self._thread.is_alive():
            self._capture.release()
        if self._microphone is not None:
            self._microphone.close()


def open_camera(number: int, microphone: str) -> CameraInput:
    """Camera `number` and a microphone by name; 'none' = silence.

    Raises:
        UserError: OpenCV, the camera or the microphone is missing.
    """
    from avpretrain.evaluation.speakers.faces import _opencv

    capture = _opencv().VideoCapture(number)
    if not capture.isOpened():
        raise UserError(f"camera {number} can't be opened; is it connected, and not in use elsewhere?")
    if microphone == "none":
        camera = CameraInput(capture, None, f"camera-{number}")
        camera.notes.append("no microphone is used, so that nobody can be heard to speak")
        return camera
    system = "avfoundation" if sys.platform == "darwin" else "alsa"
    try:
        container = av.open(f":{microphone}" if system == "avfoundation" else microphone, format=system)
    except (av.FFmpegError, ValueError) as error:
        capture.release()
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"microphone {microphone} can't be opened ({system}: {why}); name another with --microphone, or none"
        ) from None
    return CameraInput(capture, Microphone(container), f"camera-{number}")
