"""Faces in a frame, by OpenCV, and what goes with one from frame to frame.

Detectors take a frame's brightness and colours and give boxes as shares of its width and height. None of them comes
with this package: OpenCV (Apache 2.0, `pip install avpretrain[speakers]`) brings the cascade (Intel License Agreement
For Open Source Computer Vision Library, as BSD with three clauses); a YuNet model is a file of yours (in OpenCV's model
zoo it has the MIT licence).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avpretrain.core.errors import UserError
from avpretrain.core.files import mistaken_for, read_head
from avpretrain.methods.speaker.tracks.crops import Box

CASCADE = "haarcascade_frontalface_default.xml"
DETECTION_SIZE = 320
"""Pixels of the longer side of the frame in which faces are looked for."""
LEAST_IOU = 0.3
"""Overlap (intersection over union) from which on a box goes on with a track."""
NEW = 0.4
"""Share of a new box in the box of a track; the rest is where it was: detected boxes tremble."""


@runtime_checkable
class Detector(Protocol):
    """Finds faces."""

    licence: str

    def __call__(self, grey_HW: NDArray[np.uint8], rgb_HWC: NDArray[np.uint8] | None) -> list[Box]:
        """The boxes of faces; the colours are there where `needs_colour` is true."""

    @property
    def needs_colour(self) -> bool: ...


def _opencv() -> Any:
    """OpenCV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise UserError(
            "finding faces needs OpenCV: pip install 'avpretrain[speakers]', or give their boxes with --boxes CSV"
        ) from None
    cv2.setNumThreads(1)
    return cv2


class CascadeFaces:
    """The cascade of Haar features for frontal faces that comes with OpenCV 4.

    Raises:
        UserError: there is no OpenCV, or one without it (5).
    """

    licence = (
        "OpenCV: Apache 2.0; its cascade: Intel License Agreement For Open Source Computer Vision Library (BSD-like)"
    )
    needs_colour = False

    def __init__(self, size: int = DETECTION_SIZE) -> None:
        cv2 = _opencv()
        folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
        if not hasattr(cv2, "CascadeClassifier") or not (Path(folder) / CASCADE).is_file():
            raise UserError(
                f"OpenCV {cv2.__version__} comes without the cascade; pip install 'opencv-python-headless<5', or give "
                "--detector FILE.onnx (YuNet) or --boxes CSV"
            )
        self._cascade, self.size = cv2.CascadeClassifier(str(Path(folder) / CASCADE)), size

    def __call__(self, grey_HW: NDArray[np.uint8], rgb_HWC: NDArray[np.uint8] | None = None) -> list[Box]:
        small_HW = _smaller(grey_HW, self.size)
        height, width = small_HW.shape
        least = max(20, min(height, width) // 10)
        found = self._cascade.detectMultiScale(small_HW, scaleFactor=1.15, minNeighbors=5, minSize=(least, least))
        return [(x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h in np.reshape(found, (-1, 4))]


class YuNetFaces:
    """A YuNet model in ONNX, by OpenCV.

    Raises:
        UserError: there is no OpenCV, or the file is no such model.
    """

    licence = "OpenCV: Apache 2.0; YuNet: the file's own (MIT in OpenCV's model zoo)"
    needs_colour = True

    def __init__(self, path: Path, size: int = DETECTION_SIZE) -> None:
        if not path.is_file():
            raise UserError(f"no detector {path}; give haar, or the file of a YuNet model (.onnx)")
        if mistaken := mistaken_for(read_head(path)):
            raise UserError(f"detector {path} {mistaken}")
        cv2 = _opencv()
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (size, size), 0.7)
            self._net.detect(np.zeros((size, size, 3), np.uint8))
        except cv2.error as error:
            why = str(error).strip().splitlines()[0][:160]
            raise UserError(f"detector {path} is no YuNet model that OpenCV {cv2.__version__} reads: {why}") from None
        self.size = size

    def __call__(self, grey_HW: NDArray[np.uint8], rgb_HWC: NDArray[np.uint8] | None = None) -> list[Box]:
        assert rgb_HWC is not None
        small_HWC = _smaller(rgb_HWC, self.size)
        height, width = small_HWC.shape[:2]
        self._net.setInputSize((width, height))
        _, found = self._net.detect(np.ascontiguousarray(small_HWC[:, :, ::-1]))
        boxes = np.zeros((0, 4)) if found is None else np.asarray(found)[:, :4]
        return [(x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h in boxes.tolist()]


def _smaller(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """An image whose longer side is at most `size`."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(image)
    to = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(to, Image.Resampling.BILINEAR, reducing_gap=1.5))


def make_detector(name: str, size: int) -> Detector:
    """'haar', or the file of a YuNet model.

    Raises:
        UserError: it can't be had.
    """
    return CascadeFaces(size) if name == "haar" else YuNetFaces(Path(name), size)


@dataclass
class Face:
    """A face that is followed."""

    name: str
    box: Box
    hits: int = 1
    """Detections that it had."""
    missed: int = 0
    """Frames since the last one."""


class FaceTracker:
    """Boxes to faces that keep their names, by overlap; only the past is used.

    Args:
        patience: frames without a detection after which a face is gone; until then it stays where it was.
        hits: detections that a face needs before it is one: a single one is often none.
    """

    def __init__(self, patience: int = 15, hits: int = 2) -> None:
        self.patience, self.hits = patience, hits
        self._faces: list[Face] = []
        self._count = 0

    def update(self, boxes: Sequence[Box] | None) -> list[Face]:
        """The faces of the next frame.

        Args:
            boxes: detections in it; none = nobody looked.
        """
        for face in self._faces:
            face.missed += 1
        if boxes is not None:
            free = list(boxes)
            pairs = sorted(
                ((iou(face.box, box), i, j) for i, face in enumerate(self._faces) for j, box in enumerate(free)),
                reverse=True,
            )
            taken_faces, taken_boxes = set[int](), set[int]()
            for overlap, i, j in pairs:
                if overlap < LEAST_IOU or i in taken_faces or j in taken_boxes:
                    continue
                taken_faces.add(i)
                taken_boxes.add(j)
                face = self._faces[i]
                x1, y1, x2, y2 = (NEW * new + (1 - NEW) * old for new, old in zip(free[j], face.box, strict=True))
                face.box, face.hits, face.missed = (x1, y1, x2, y2), face.hits + 1, 0
            for i in range(len(self._faces)):
                if i not in taken_faces and self._faces[i].hits < self.hits:
                    self._faces[i].missed = self.patience + 1  # it was none
            for j, box in enumerate(free):
                if j not in taken_boxes:
                    self._count += 1
                    self._faces.append(Face(f"face-{self._count}", box))
        self._faces = [face for face in self._faces if face.missed <= self.patience]
        return [face for face in self._faces if face.hits >= self.hits]

    @property
    def unsure(self) -> bool:
        """Whether there are boxes that may be faces, and need another detection."""
        return any(face.hits < self.hits for face in self._faces)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
