"""A detector at work: frames and audio come in, faces are followed, scores go out, as late as the model's window says.

Only what has come in is used: the detector sees a frame, the tracker the frames before it, the model its window.
"""

from __future__ import annotations

import csv
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avpretrain.evaluation.speakers.faces import Detector, FaceTracker
from avpretrain.evaluation.speakers.inputs import Moment
from avpretrain.measures.results import Result
from avpretrain.methods.speaker.ava import COLUMNS, LABELS, SCORE, SPEAKING
from avpretrain.methods.speaker.config import FPS
from avpretrain.methods.speaker.tracks.crops import Box, crop_face
from avpretrain.methods.speaker.tracks.cut import Boxes
from avpretrain.methods.speaker.video_file import video_file

FRAME_MS = 1000 / FPS
GREEN, GREY = (40, 220, 70), (200, 200, 200)
PARTS = ("read", "detect", "crop", "model", "write")


@runtime_checkable
class Scores(Protocol):
    """A stream of one face: methods.speaker.streaming.Stream."""

    @property
    def delay_frames(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    def push(self, faces: NDArray[np.uint8], waveform: NDArray[np.float32]) -> list[float]: ...
    def flush(self) -> list[float]: ...


@runtime_checkable
class Input(Protocol):
    """A file or a camera."""

    name: str
    notes: list[str]
    aspect: float
    """Width of a pixel over its height."""
    endless: bool
    """Whether it goes on until it is interrupted."""

    def moments(self, colour: bool) -> Iterator[Moment]: ...


Finder = Callable[[Moment], dict[str, Box]]
"""Gives the boxes of the faces in a frame, by their names."""


class DetectedFaces:
    """Faces by a detector, at every so many frames, followed in between."""

    def __init__(self, detector: Detector, every: int = 5) -> None:
        self.detector, self.every = detector, every
        self._tracker = FaceTracker(patience=max(15, 3 * every), hits=2)
        self._next = 0

    def __call__(self, moment: Moment) -> dict[str, Box]:
        found = None
        if moment.number >= self._next:
            found = self.detector(moment.grey_HW, moment.rgb_HWC)
        faces = self._tracker.update(found)
        if found is not None:  # a face that may be new is looked for again at once
            self._next = moment.number + (1 if self._tracker.unsure else self.every)
        return {face.name: face.box for face in faces}


class GivenFaces:
    """Faces whose boxes a table tells."""

    def __init__(self, tracks: list[Boxes]) -> None:
        self._tracks = tracks

    def __call__(self, moment: Moment) -> dict[str, Box]:
        found = {}
        for track in self._tracks:
            if track.first <= moment.number < track.end:
                x1, y1, x2, y2 = track.box_T4[moment.number - track.first].tolist()
                found[track.track] = (x1, y1, x2, y2)
        return found


@dataclass(frozen=True, kw_only=True)
class LiveReport(Result):
    """How a run went; its JSON says `keeps_up`, too. `speakers.json` holds it, with the input and the checkpoint."""

    frames: int
    seconds: float
    """Of video."""
    faces: int
    scores: int
    speaking: int
    """Scores above the threshold."""
    delay_frames: int
    delay_ms: float
    """By which a score comes late by the model's window: what it waits for."""
    state_bytes: int
    """Most that the streams of all faces kept at a time."""
    ms: dict[str, float]
    """Mean time of a frame, by what it was spent on; waiting for a camera is none."""
    mean_ms: float
    p95_ms: float
    worst_second_ms: float
    """Mean time of a frame in the slowest second."""
    cpu_ms: float
    """Mean CPU time of a frame, over all threads: less than `mean_ms` where other programs took the CPU."""
    cores: int
    detector: str
    """With its licence."""
    skipped: int = 0
    """Frames of a camera that were left out since those before took too long."""
    notes: tuple[str, ...] = ()

    @property
    def keeps_up(self) -> bool:
        """Whether 25 frames a second can be had: on average, in every second, and without leaving any out."""
        return self.frames > 0 and max(self.mean_ms, self.worst_second_ms) <= FRAME_MS and not self.skipped

    @property
    def verdict(self) -> str:
        """Whether it keeps up, in a sentence."""
        told = (
            f"{self.mean_ms:.1f} ms a frame on average, {self.p95_ms:.1f} ms at the 95th percentile, "
            f"{self.worst_second_ms:.1f} ms in the slowest second, of {FRAME_MS:g} ms (CPU time {self.cpu_ms:.1f} ms)"
        )
        if self.keeps_up:
            return f"keeps up with {FPS} fps on this machine ({self.cores} CPU cores): {told}"
        most = max(self.ms, key=self.ms.__getitem__)
        advice = {
            "read": "give it a smaller video",
            "detect": "look for faces less often (--detect-every), or in a smaller frame (--detect-size)",
            "crop": "give it a smaller video",
            "model": "use a model of less width or depth",
            "write": "leave the annotated video out (--no-annotate)",
        }[most]
        if self.cpu_ms < FRAME_MS / 2:
            advice = f"only {self.cpu_ms:.1f} ms of it is CPU time, so other programs have the CPU; or {advice}"
        left_out = f", and left {self.skipped} frames out" if self.skipped else ""
        return (
            f"does NOT keep up with {FPS} fps on this machine ({self.cores} CPU cores){left_out}: {told}; most goes to "
            f"'{most}' ({self.ms[most]:.1f} ms): {advice}"
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields, and whether it keeps up."""
        return {**super().to_json(), "keeps_up": self.keeps_up}


@dataclass
class _Speaker:
    """A face with its stream."""

    name: str
    stream: Scores
    first: int
    boxes: dict[int, Box] = field(default_factory=dict)
    answered: int = 0

    def take(self, scores: list[float]) -> list[tuple[int, Box, float]]:
        """Frame, box and score of what the stream gave out."""
        found = []
        for score in scores:
            number = self.first + self.answered
            found.append((number, self.boxes.pop(number), score))
            self.answered += 1
        return found


class _Clock:
    """Time spent on each part of a frame."""

    def __init__(self) -> None:
        self.total = dict.fromkeys(PARTS, 0.0)
        self.frames: list[float] = []
        self._frame = 0.0
        self._cpu = time.process_time()

    def cpu_seconds(self) -> float:
        """CPU time since the beginning."""
        return time.process_time() - self._cpu

    @contextmanager
    def on(self, part: str, waits: bool = False) -> Iterator[None]:
        """Counts the time of the block; where it waits for a camera, only that in which it works."""
        now = time.thread_time if waits else time.perf_counter
        start = now()
        try:
            yield
        finally:
            spent = now() - start
            self.total[part] += spent
            self._frame += spent

    def end_frame(self) -> None:
        self.frames.append(1000 * self._frame)
        self._frame = 0.0

    def worst_second(self) -> float:
        """The highest mean over 25 frames; over all where there are fewer."""
        sums = np.cumsum([0.0, *self.frames])
        count = min(FPS, len(self.frames))
        return float((sums[count:] - sums[:-count]).max() / count) if count else 0.0


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Signals of Ctrl-C that came within the block; the third raises KeyboardInterrupt, where all else hangs.

    Only the main thread can take them; in another the list stays empty.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        if len(came) > 2:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


def run_live(
    source: Input,
    finder: Finder,
    open_stream: Callable[[], Scores],
    face_size: int,
    out: Path,
    *,
    margin: float,
    threshold: float,
    annotate: bool,
    colour: bool,
    detector: str,
    seconds: float = 0.0,
    on_frame: Callable[[int, dict[str, float]], None] = lambda number, scores: None,
) -> LiveReport:
    """Writes `out`/scores.csv, line by line as scores come, and `out`/annotated.mp4.

    Args:
        source: of frames and audio.
        finder: of faces.
        open_stream: gives a stream for a new face.
        face_size: pixels of the crops that it takes.
        out: folder.
        margin: share of a box's longer side that is added at each side.
        threshold: score from which on a face is said to speak.
        annotate: whether to write the video.
        colour: whether the finder needs colours.
        detector: what finds faces, with its licence.
        seconds: stop after so many; 0 = at the end.
        on_frame: called with each frame's number and the newest score of each face.
    """
    clock, speakers, newest = _Clock(), dict[str, _Speaker](), dict[str, float]()
    waiting = deque[Moment]()
    scored: dict[int, list[tuple[str, Box, float]]] = {}
    counts = {"frames": 0, "faces": 0, "scores": 0, "speaking": 0, "state": 0}
    delay = open_stream().delay_frames
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stopped = stack.enter_context(_interrupts()) if source.endless else []
        table = stack.enter_context((out / "scores.csv").open("w", newline="", buffering=1))
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow([*COLUMNS, SCORE])
        video = None

        def tell(speaker: _Speaker, scores: list[float]) -> None:
            for number, box, score in speaker.take(scores):
                scored.setdefault(number, []).append((speaker.name, box, score))
                newest[speaker.name] = score
                speaks = score >= threshold
                counts["scores"] += 1
                counts["speaking"] += speaks
                corners = [f"{value:.6f}" for value in box]
                label = LABELS[SPEAKING if speaks else 0]
                entity = speaker.name if speaker.name.startswith(source.name) else f"{source.name}:{speaker.name}"
                rows.writerow([source.name, f"{number / FPS:.2f}", *corners, label, entity, f"{score:.9g}"])

        def end(name: str) -> None:
            speaker = speakers.pop(name)
            tell(speaker, speaker.stream.flush())
            newest.pop(name, None)

        def show(until: int) -> None:
            """Writes the frames whose scores are all known."""
            nonlocal video
            while waiting and waiting[0].number <= until:
                moment = waiting.popleft()
                told = scored.pop(moment.number, [])
                if not annotate or moment.rgb_HWC is None:
                    continue
                image = annotated(moment.rgb_HWC, told, threshold, f"delay {delay} frames, {delay * FRAME_MS:.0f} ms")
                if video is None:
                    video = stack.enter_context(video_file(out / "annotated.mp4", image.shape[1], image.shape[0]))
                video.add(image, moment.waveform_S)

        moments, last = source.moments(colour or annotate), -1
        while not stopped:
            try:
                with clock.on("read", waits=source.endless):
                    moment = next(moments, None)
            except KeyboardInterrupt:  # the way to end a camera's run; elsewhere it breaks one off
                if not source.endless:
                    raise
                break
            if moment is None or (seconds and moment.number >= seconds * FPS):
                break
            if moment.number != last + 1 and last >= 0:  # frames were left out: no stream goes on over a hole
                for name in list(speakers):
                    end(name)
                show(last)
            last = moment.number
            with clock.on("detect"):
                boxes = finder(moment)
            with clock.on("model"):
                for name in [name for name in speakers if name not in boxes]:
                    end(name)
            waiting.append(moment)
            for name, box in boxes.items():
                if name not in speakers:
                    speakers[name] = _Speaker(name, open_stream(), moment.number)
                    counts["faces"] += 1
                with clock.on("crop"):
                    face_HW = crop_face(moment.grey_HW, box, face_size, margin, source.aspect)
                speakers[name].boxes[moment.number] = box
                with clock.on("model"):
                    tell(speakers[name], speakers[name].stream.push(face_HW[None], moment.waveform_S))
            counts["state"] = max(counts["state"], sum(s.stream.state_bytes for s in speakers.values()))
            with clock.on("write"):
                show(moment.number - delay)
            counts["frames"] += 1
            clock.end_frame()
            on_frame(moment.number, newest)
        for name in list(speakers):
            end(name)
        show(last)
    frames = max(1, counts["frames"])
    return LiveReport(
        frames=counts["frames"],
        seconds=counts["frames"] / FPS,
        faces=counts["faces"],
        scores=counts["scores"],
        speaking=counts["speaking"],
        delay_frames=delay,
        delay_ms=delay * FRAME_MS,
        state_bytes=counts["state"],
        ms={part: 1000 * spent / frames for part, spent in clock.total.items()},
        mean_ms=float(np.mean(clock.frames or [0.0])),
        p95_ms=float(np.percentile(clock.frames or [0.0], 95)),
        worst_second_ms=clock.worst_second(),
        cpu_ms=1000 * clock.cpu_seconds() / frames,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        detector=detector,
        skipped=getattr(source, "skipped", 0),
        notes=tuple(source.notes),
    )


def annotated(
    rgb_HWC: NDArray[np.uint8], told: list[tuple[str, Box, float]], threshold: float, delay: str
) -> NDArray[np.uint8]:
    """A frame with a box around each face, green while it speaks, its name and score, and the delay in a corner."""
    height, width = rgb_HWC.shape[0] // 2 * 2, rgb_HWC.shape[1] // 2 * 2
    image = Image.fromarray(rgb_HWC[:height, :width])
    draw, line = ImageDraw.Draw(image), max(1, min(width, height) // 120)
    size = max(9, min(width, height) // 24)
    for name, (x1, y1, x2, y2), score in told:
        colour = GREEN if score >= threshold else GREY
        corners = (x1 * width, y1 * height, x2 * width, y2 * height)
        draw.rectangle(corners, outline=colour, width=2 * line if score >= threshold else line)
        draw.text((corners[0] + 2 * line, corners[1] + line), f"{name} {score:.2f}", fill=colour, font_size=size)
    draw.text((2 * line, height - size - 3 * line), delay, fill=(255, 255, 255), font_size=size)
    return np.asarray(image)
