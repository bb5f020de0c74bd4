"""Loaders: processes that decode clips, in an order that depends on neither their number nor the number of ranks.

B clips, T frames, H height, W width, C colours, S waveform samples.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.context import BaseContext

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from avpretrain import draws
from avpretrain.batch import RawBatch
from avpretrain.config import DataConfig, InputConfig
from avpretrain.data.clips import ClipSet, Modality, Sample, window_samples
from avpretrain.data.decode import DecodeError
from avpretrain.data.sampler import BatchPlaces, Order, Place, spread
from avpretrain.data.storage import StorageError
from avpretrain.errors import UserError
from avpretrain.schedules import Step

__all__ = ["ClipSet", "Modality", "check_bad_share", "eval_loader", "train_loader"]

MAX_SKIPS = 16
"""Failed clips in a row after which a loader gives up."""
PATIENCE = 1800
"""Seconds without a batch after which the loader processes are taken to hang."""


def train_loader(
    cfg: DataConfig,
    input: InputConfig,
    seed: int,
    steps: Iterable[Step],
    rank: int = 0,
    world: int = 1,
    clips: ClipSet | None = None,
) -> Iterator[RawBatch]:
    """This rank's share of the batch of each step, decoded by `cfg.num_workers` processes.

    Args:
        steps: the plan, from the step on that is to come next (`schedules.plan`, cut at the point of resumption).
        clips: the set behind `cfg.shards`, where it is open already.

    Raises:
        UsageError: a batch does not divide among the ranks.
        UserError: the data set can't be read, or too many clips in a row are damaged.
    """
    clips = clips or ClipSet(cfg.shards, cfg.split, cfg.cache_dir)
    order = Order(clips.shard_sizes, cfg.shuffle_window, seed)
    dataset = _TrainingClips(clips, order, input)
    return _load(dataset, BatchPlaces(order, steps, rank, world), cfg.num_workers, cfg.prefetch, input)


def eval_loader(
    clips: ClipSet,
    input: InputConfig,
    rows: Sequence[int],
    batch_size: int,
    num_workers: int = 0,
    modality: Modality = "both",
) -> Iterator[RawBatch]:
    """Clips in the order of `rows`, each by its central window, frames already small.

    A clip that can't be decoded stands in its place without sound and picture, and is counted in `failed`.

    Args:
        modality: what to decode; the other modality counts as absent.
    """
    dataset = _EvaluationClips(clips, input, modality)
    return _load(dataset, list(spread(rows, batch_size)), num_workers, 2, input)


def check_bad_share(failed: int, seen: int, max_share: float, reason: str) -> None:
    """Stops a run in which more than `max_share` of the clips seen (and at least 20) failed.

    Raises:
        UserError: that is so; the message gives the latest `reason`.
    """
    if failed >= 20 and failed > max_share * (failed + seen):
        raise UserError(
            f"{failed} of {failed + seen} clips could not be read, more than data.max_bad_share {max_share:g} allows; "
            f"the latest: {reason}"
        )


class _TrainingClips(Dataset[Sample | UserError]):
    """Random windows, addressed by place; a clip that fails gives way to the next one of its window of shards."""

    def __init__(self, clips: ClipSet, order: Order, input: InputConfig) -> None:
        self.clips, self.order, self.input = clips, order, input
        self.short_side = round(input.video_size * 8 / 7)  # 256 for 224: room for the random crop

    def __getitem__(self, place: Place) -> Sample | UserError:
        seed = self.order.sample_seed(place)
        at = random_window(seed)
        reasons: list[str] = []
        while len(reasons) < MAX_SKIPS:
            row = self.order.row(place, skip=len(reasons))
            try:
                sample = self.clips.read(row, self.input, seed, at, self.short_side)
            except (DecodeError, StorageError) as error:
                reasons.append(str(error))
            else:
                return Sample(sample.waveform_S, sample.frames_THWC, row, seed, tuple(reasons))
        return UserError(f"{MAX_SKIPS} clips in a row could not be read; the last: {reasons[-1]}")


class _EvaluationClips(Dataset[Sample | UserError]):
    """Central windows, addressed by row."""

    def __init__(self, clips: ClipSet, input: InputConfig, modality: Modality) -> None:
        self.clips, self.input, self.modality = clips, input, modality

    def __getitem__(self, row: int) -> Sample | UserError:
        seed = draws.sample_seed(0, 0, row)
        try:
            return self.clips.read(row, self.input, seed, short_side=self.input.video_size, modality=self.modality)
        except (DecodeError, StorageError) as error:
            return Sample(torch.zeros(0, dtype=torch.int16).numpy(), None, row, seed, (str(error),))


def random_window(seed: int) -> tuple[float, float]:
    """Where a training sample's windows of sound and picture lie, each in [0, 1)."""
    seed_1 = torch.tensor([seed])
    return float(draws.uniform(seed_1, "audio_window")), float(draws.uniform(seed_1, "video_window"))


class Collate:
    """Decoded clips to a batch of fixed waveform length; frames are padded to the largest of the batch."""

    def __init__(self, input: InputConfig) -> None:
        self.samples, self.frames = window_samples(input), input.video_frames

    def __call__(self, samples: Sequence[Sample | UserError]) -> RawBatch | UserError:
        good = [sample for sample in samples if isinstance(sample, Sample)]
        if len(good) < len(samples):
            return next(sample for sample in samples if isinstance(sample, UserError))
        sizes = [(0, 0) if s.frames_THWC is None else s.frames_THWC.shape[1:3] for s in good]
        height, width = (max(1, *(size[axis] for size in sizes)) for axis in (0, 1))
        waveform_BS = _shared((len(good), self.samples), torch.int16)
        frames_BTHWC = _shared((len(good), self.frames, height, width, 3), torch.uint8)
        for b, (sample, (h, w)) in enumerate(zip(good, sizes, strict=True)):
            waveform_BS[b, : len(sample.waveform_S)] = torch.from_numpy(sample.waveform_S)
            if sample.frames_THWC is not None:
                frames_BTHWC[b, :, :h, :w] = torch.from_numpy(sample.frames_THWC)
        reasons = tuple(reason for sample in good for reason in sample.reasons)
        return RawBatch(
            waveform_BS=waveform_BS,
            samples_B=torch.tensor([len(s.waveform_S) for s in good]),
            frames_BTHWC=frames_BTHWC,
            size_B2=torch.tensor(sizes),
            seed_B=torch.tensor([s.seed for s in good]),
            index_B=torch.tensor([s.index for s in good]),
            failed=len(reasons),
            reasons=reasons,
        )


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros; in a loader process they lie in shared memory from the start, which saves a copy of the batch."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # as torch's own collation does
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)  # fresh pages are zero


def _load(
    dataset: Dataset[Sample | UserError],
    batches: Iterable[list[Place]] | Sequence[Sequence[int]],
    num_workers: int,
    prefetch: int,
    input: InputConfig,
) -> Iterator[RawBatch]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        collate_fn=Collate(input),
        multiprocessing_context=process_context() if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        timeout=PATIENCE if num_workers else 0,
        generator=torch.Generator(),  # so that the global generator is left alone
    )
    return _checked(loader)


def process_context() -> BaseContext:
    """How loader processes start: never by forking this one, whose threads may hold locks.

    On Linux they are forked from a server that has imported what they need, once for all of them.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _checked(loader: DataLoader[Sample | UserError]) -> Iterator[RawBatch]:
    """Batches of a loader, its failures turned into one line each."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise UserError(
                f"the loader processes died or hang ({str(error).splitlines()[0]}); "
                "if memory ran out, lower data.num_workers or data.prefetch"
            ) from None
        if isinstance(batch, UserError):
            raise batch
        yield batch
