"""Shared memory in which batches travel from a loader process to training, used again and again.

Fresh shared memory is expensive: the kernel hands it out page by page, which takes longer than to fill it. So a loader
process keeps its slots. A byte in front of each says whether training still holds the batch; it falls with the last
tensor over the slot.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avpretrain.data.batch import RawBatch

LINE = 64
"""Bytes: the flag has a cache line of its own, and tensors begin at one."""
GROWTH = 8
"""Slots are up to an eighth larger than asked for, so that batches of nearly one size share them."""


class Slots:
    """The slots of one loader process; as many as training and the queues hold at once."""

    def __init__(self) -> None:
        self._slots: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """uint8 [>= LINE + size]: a slot that nobody holds, marked as held; contents are left over from before."""
        free = [slot for slot in self._slots if not slot[0]]
        fitting = [slot for slot in free if len(slot) >= LINE + size]
        if fitting:
            slot = min(fitting, key=len)
        else:  # free ones are all too small now: they give way
            self._slots = [slot for slot in self._slots if not any(slot is other for other in free)]
            step = max(LINE, size // GROWTH)
            storage = torch.UntypedStorage._new_shared(LINE + math.ceil(size / step) * step)
            slot = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._slots.append(slot)
        slot[0] = 1
        return slot


@dataclass(frozen=True, kw_only=True)
class SlotBatch(RawBatch):
    """A batch whose audio and frames lie in a slot; it is unpickled as a plain `RawBatch` over that memory."""

    slot: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        shapes = tuple(self.waveform_BS.shape), tuple(self.frames_BTHWC.shape)
        small: dict[str, Any] = {}
        for field in dataclasses.fields(RawBatch):
            value = getattr(self, field.name)
            if field.name not in ("waveform_BS", "frames_BTHWC"):
                small[field.name] = value.numpy() if isinstance(value, Tensor) else value  # travels by value
        return _arrived, (self.slot.untyped_storage(), shapes, small)


Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""Of audio and of frames."""


def lay_out(memory: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
    """Audio (int16) and frames (uint8) over uint8 memory of at least `bytes_of(shapes)`."""
    start, end = _frames_at(shapes), bytes_of(shapes)
    wave = memory[: 2 * math.prod(shapes[0])].view(torch.int16)
    return wave.view(shapes[0]), memory[start:end].view(shapes[1])


def bytes_of(shapes: Shapes) -> int:
    """What `lay_out` needs."""
    return _frames_at(shapes) + math.prod(shapes[1])


def _frames_at(shapes: Shapes) -> int:
    return math.ceil(2 * math.prod(shapes[0]) / LINE) * LINE


def _arrived(storage: torch.UntypedStorage, shapes: Shapes, small: dict[str, Any]) -> RawBatch:
    whole = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    shared = whole[LINE:]
    weakref.finalize(shared, _let_go, whole[:1]).atexit = False
    waveform_BS, frames_BTHWC = lay_out(torch.from_numpy(shared), shapes)  # they keep `held` alive
    rest: dict[str, Any] = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in small.items()}
    return RawBatch(waveform_BS=waveform_BS, frames_BTHWC=frames_BTHWC, **rest)


def _let_go(flag: np.ndarray) -> None:
    flag[0] = 0
