"""Decoded clips to batches, inside the loader processes.

B clips, T frames, H height, W width, C colours, S waveform samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import get_worker_info

from avpretrain.config.model import InputConfig
from avpretrain.core import draws
from avpretrain.core.errors import UserError
from avpretrain.data.batch import RawBatch
from avpretrain.data.read.clips import Sample, window_samples
from avpretrain.data.read.slots import LINE, SlotBatch, Slots, bytes_of, lay_out

MAX_SKIPS = 16
"""Failed clips in a row after which a loader gives up."""


def gave_up(reasons: Sequence[str]) -> UserError:
    """What ends a run whose clips can't be read, and the batch at once: further ones would fail in the same way."""
    return UserError(f"{MAX_SKIPS} clips in a row could not be read; the last: {reasons[-1]}")


def training_short_side(input: InputConfig) -> int:
    """Shorter side of the frames that training decodes: 256 for a size of 224, room for the random crop."""
    return round(input.video_size * 8 / 7)


def random_window(seed: int) -> tuple[float, float]:
    """Where a training sample's windows of audio and video lie, each in [0, 1)."""
    return draws.uniform_number(seed, "audio_window"), draws.uniform_number(seed, "video_window")


class Collate:
    """Decoded clips to a batch of fixed waveform length; frames are padded to the largest of the batch.

    Args:
        shared: put the batch into shared memory, which saves a copy on its way to training; none = in loader processes.
    """

    def __init__(self, input: InputConfig, shared: bool | None = None) -> None:
        self.samples, self.frames, self.shared = window_samples(input), input.video_frames, shared
        self.slots = Slots()

    def __call__(self, samples: Sequence[Sample | UserError]) -> RawBatch | UserError:
        good = [sample for sample in samples if isinstance(sample, Sample)]
        if len(good) < len(samples):
            return next(sample for sample in samples if isinstance(sample, UserError))
        sizes = [(0, 0) if s.frames_THWC is None else s.frames_THWC.shape[1:3] for s in good]
        height, width = (max(1, *(size[axis] for size in sizes)) for axis in (0, 1))
        shapes = (len(good), self.samples), (len(good), self.frames, height, width, 3)
        shared = get_worker_info() is not None if self.shared is None else self.shared
        slot = self.slots.take(bytes_of(shapes)) if shared else None
        memory = torch.empty(bytes_of(shapes), dtype=torch.uint8) if slot is None else slot[LINE:]
        waveform_BS, frames_BTHWC = lay_out(memory, shapes)
        for b, (sample, (h, w)) in enumerate(zip(good, sizes, strict=True)):
            length = len(sample.waveform_S)
            waveform_BS[b, :length] = torch.from_numpy(sample.waveform_S)
            waveform_BS[b, length:] = 0
            if (h, w) != (height, width):
                frames_BTHWC[b] = 0
            if sample.frames_THWC is not None:
                frames_BTHWC[b, :, :h, :w] = torch.from_numpy(sample.frames_THWC)
        reasons = tuple(reason for sample in good for reason in sample.reasons)
        batch = RawBatch(
            waveform_BS=waveform_BS,
            samples_B=torch.tensor([len(s.waveform_S) for s in good]),
            frames_BTHWC=frames_BTHWC,
            size_B2=torch.tensor(sizes),
            seed_B=torch.tensor([s.seed for s in good]),
            index_B=torch.tensor([s.index for s in good]),
            failed=len(reasons),
            reasons=reasons,
        )
        return batch if slot is None else SlotBatch(**vars(batch), slot=slot)
