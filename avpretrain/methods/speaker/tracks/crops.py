"""Frames of a video at 25 a second, by their times, and the faces in them.

H and W pixels of a frame, N faces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from avpretrain.data.container import decoding
from avpretrain.methods.speaker.config import FPS

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as shares of the frame's width and height."""


@dataclass(frozen=True, slots=True)
class GridFrame:
    """What a video shows at a time of the grid."""

    number: int
    """Its time is number / 25 s."""
    frame: Any
    """PyAV frame."""


def at_grid(frames: Iterator[tuple[float, Any]], first: int = 0, *, causal: bool) -> Iterator[GridFrame]:
    """A frame for each time of the grid, by timestamps.

    Causal: the newest that is not later than the time; times before the first frame are left out. Otherwise the
    nearest, the earlier of two that are equally near, which may lie in the future by half of the time between two
    frames; times before the first frame are left out where it is further than half a frame of the grid away.

    Args:
        frames: (seconds, frame), ascending, and at last (end, None), as `Source.frames` gives them.
        first: number of the grid at which it begins.
        causal: whether a frame that is later than the time, by more than a microsecond, must not be shown for it.
    """
    number, before = first, None
    for time, frame in frames:
        if before is None:
            begin = (time - 1e-6) * FPS if causal else time * FPS - 0.5 - 1e-6
            number = max(number, math.ceil(begin))
        else:
            earlier, shown = before
            while number / FPS < time - (1e-6 if causal or frame is None else 0):
                wanted = number / FPS
                if not causal and frame is not None and time - wanted < wanted - earlier - 1e-9:
                    break
                yield GridFrame(number, shown)
                number += 1
        if frame is None:
            return
        before = time, frame
    if before is not None and number / FPS <= before[0] + 0.5 / FPS:
        yield GridFrame(number, before[1])


def grey(frame: Any) -> UInt8[np.ndarray, "h w"]:
    """A PyAV frame's brightness, turned as its display matrix asks."""
    with decoding():
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="gray"), k=round(frame.rotation / 90) % 4))


def crop_face(
    grey_HW: UInt8[np.ndarray, "h w"], box: Box, size: int, margin: float, aspect: float = 1.0
) -> NDArray[Any]:
    """uint8 [size, size]: the square around a face's box, as a viewer sees it.

    Its side is the longer side of the box and `margin` of that at each side. Where it reaches over the frame, the
    frame's border is continued.

    Args:
        grey_HW: the frame.
        box: of the face.
        size: pixels of the result.
        margin: share of the longer side.
        aspect: width of a pixel over its height.
    """
    height, width = grey_HW.shape
    x1, y1, x2, y2 = box[0] * width * aspect, box[1] * height, box[2] * width * aspect, box[3] * height
    half = max(1.0, (1 + 2 * margin) * max(x2 - x1, y2 - y1)) / 2
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    left, right = (centre_x - half) / aspect, (centre_x + half) / aspect
    top, bottom = centre_y - half, centre_y + half
    x_from, x_to, y_from, y_to = math.floor(left), math.ceil(right), math.floor(top), math.ceil(bottom)
    around = (max(0, -y_from), max(0, y_to - height)), (max(0, -x_from), max(0, x_to - width))
    inside_HW = grey_HW[min(max(0, y_from), height - 1) : max(1, y_to), min(max(0, x_from), width - 1) : max(1, x_to)]
    if any(sum(pair) for pair in around):
        inside_HW = _continued(inside_HW, around, (y_to - y_from, x_to - x_from))
    image = Image.fromarray(np.ascontiguousarray(inside_HW))
    area = (left - x_from, top - y_from, right - x_from, bottom - y_from)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=area, reducing_gap=2.0))


def _continued(
    inside_HW: NDArray[Any], around: tuple[tuple[int, int], tuple[int, int]], shape: tuple[int, int]
) -> NDArray[Any]:
    """The part of a square that lies in the frame, with the frame's border continued to the whole."""
    rows = np.clip(np.arange(shape[0]) - around[0][0], 0, inside_HW.shape[0] - 1)
    columns = np.clip(np.arange(shape[1]) - around[1][0], 0, inside_HW.shape[1] - 1)
    return inside_HW[rows][:, columns]
