"""Memory that batches travel in: used again once nobody holds it, never before."""

from __future__ import annotations

import gc
import pickle
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch

from avpretrain.data.batch import RawBatch
from avpretrain.data.read.dataset import train_loader
from avpretrain.data.read.slots import LINE, SlotBatch, Slots, bytes_of, lay_out
from tests.data.read.test_dataset import INPUT, clip_hashes, config, plan
from tests.support.tiny_datasets import Spec, make_dataset


def sent(batch: SlotBatch) -> RawBatch:
    """A batch as training gets it."""
    buffer = BytesIO()
    ForkingPickler(buffer).dump(batch)
    arrived: RawBatch = pickle.loads(buffer.getbuffer())
    return arrived


def filled(slots: Slots, value: int, clips: int = 2, side: int = 8) -> SlotBatch:
    shapes = (clips, 100), (clips, 3, side, side, 3)
    slot = slots.take(bytes_of(shapes))
    waveform_BS, frames_BTHWC = lay_out(slot[LINE:], shapes)
    frames_BTHWC[:], waveform_BS[:] = value, -value
    numbers_B = torch.full((clips,), value)
    return SlotBatch(
        waveform_BS=waveform_BS, samples_B=numbers_B, frames_BTHWC=frames_BTHWC, size_B2=torch.full((clips, 2), side),
        seed_B=numbers_B, index_B=numbers_B, failed=1, reasons=("why",), slot=slot,
    )  # fmt: skip


def test_a_batch_arrives_whole_and_its_memory_is_not_used_again_while_any_part_of_it_is_held() -> None:
    slots = Slots()
    first = filled(slots, 5)
    address = first.slot.data_ptr()
    arrived = sent(first)
    assert type(arrived) is RawBatch
    assert (arrived.failed, arrived.reasons, len(arrived)) == (1, ("why",), 2)
    assert (arrived.waveform_BS == -5).all() and arrived.waveform_BS.shape == (2, 100)
    assert (arrived.size_B2 == 8).all() and (arrived.seed_B == 5).all()
    part = arrived.frames_BTHWC[1, 0, :2].numpy()
    del arrived
    gc.collect()
    assert filled(slots, 6).slot.data_ptr() != address
    assert (part == 5).all()
    del part
    gc.collect()
    again = filled(slots, 7)
    assert again.slot.data_ptr() == address
    assert (sent(again).frames_BTHWC == 7).all()


def test_slots_grow_with_batches_and_too_small_ones_give_way() -> None:
    slots = Slots()
    held = sent(filled(slots, 1))
    for side in (8, 16, 32, 16, 32):
        arrived = sent(filled(slots, side, side=side))
        assert (arrived.frames_BTHWC == side).all()
        del arrived
    assert len(slots._slots) == 2, "one that is held, one that serves all sizes"
    assert (held.frames_BTHWC == 1).all()


def test_a_batch_that_is_kept_keeps_its_contents(tmp_path: Path) -> None:
    """Batches of one process, kept and let go of in turn, against those of no process."""
    root = make_dataset(tmp_path / "set", [Spec() for _ in range(12)])
    steps = plan([4, 8, 4, 4, 8, 12, 4, 4, 4, 8, 4, 4])
    expected = clip_hashes(train_loader(config(root), INPUT, 3, steps))
    batches = list(train_loader(config(root, num_workers=1), INPUT, 3, steps))
    assert clip_hashes(batches) == expected
    in_turn = [clip_hashes([batch])[0] for batch in train_loader(config(root, num_workers=1), INPUT, 3, steps)]
    assert in_turn == expected
