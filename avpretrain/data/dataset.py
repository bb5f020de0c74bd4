"""Loaders: processes that decode clips, in an order that depends on neither their number nor the number of ranks.

B clips, T frames, H height, W width, C colours, S waveform samples.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from avpretrain import draws
from avpretrain.batch import RawBatch
from avpretrain.config import DataConfig
from avpretrain.data.clips import ClipSet, Encoded, Modality, Sample, decode_window
from avpretrain.data.collate import MAX_SKIPS, Collate, gave_up, random_window, training_short_side
from avpretrain.data.decode import DecodeError
from avpretrain.data.sampler import BatchPlaces, Order, Place, spread
from avpretrain.data.storage import StorageError
from avpretrain.data.stream import ShardStream
from avpretrain.errors import UserError
from avpretrain.modelconfig import InputConfig
from avpretrain.schedules import Step

At = TypeVar("At")
Got = TypeVar("Got")

__all__ = ["ClipSet", "Modality", "ahead", "check_bad_share", "eval_loader", "train_loader"]


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
    if cfg.mode == "stream":
        stream = ShardStream(clips, order, input, list(steps), rank, world, cfg.num_workers)
        return _checked(DataLoader[Any](stream, batch_size=None, **_processes(cfg.num_workers, cfg.prefetch)))
    places = BatchPlaces(order, steps, rank, world)
    dataset = _TrainingClips(clips, order, input, cfg.memory_cache_mb << 20)
    return _map(dataset, places, input, cfg.num_workers, cfg.prefetch)


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
    batches = list(spread(rows, batch_size))
    return _map(_EvaluationClips(clips, input, modality), batches, input, num_workers, prefetch=2)


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
    """Random windows, addressed by place; a clip that fails gives way to the next one of its window of shards.

    Args:
        cache_bytes: of decoded clips to keep, in each process, where a clip fits the model's input and so has but one
            window: it is the same in every epoch.
    """

    def __init__(self, clips: ClipSet, order: Order, input: InputConfig, cache_bytes: int = 0) -> None:
        self.clips, self.order, self.input = clips, order, input
        self.short_side = training_short_side(input)
        self.longest = min(input.audio_seconds, input.video_seconds)
        self.cache_room, self.cached = cache_bytes, dict[int, Sample]()

    def __getitems__(self, places: Sequence[Place]) -> list[Sample | UserError]:
        with ThreadPoolExecutor(1) as reader:
            coming = ahead(reader, self._fetch, places)
            return [self._sample(place, fetched, reader) for place, fetched in zip(places, coming, strict=True)]

    def _fetch(self, place: Place, skip: int = 0) -> Encoded | Sample:
        row = self.order.row(place, skip)
        return self.cached.get(row) or self.clips.encoded(row)

    def _sample(self, place: Place, fetched: Future[Encoded | Sample], reader: Executor) -> Sample | UserError:
        seed = self.order.sample_seed(place)
        reasons: list[str] = []
        while len(reasons) < MAX_SKIPS:
            try:
                sample = self._decode(fetched.result(), seed)
            except (DecodeError, StorageError) as error:
                reasons.append(str(error))
                fetched = reader.submit(self._fetch, place, len(reasons))
            else:
                return replace(sample, seed=seed, reasons=tuple(reasons))
        return gave_up(reasons)

    def _decode(self, fetched: Encoded | Sample, seed: int) -> Sample:
        kept = fetched if isinstance(fetched, Sample) else self.cached.get(fetched.index)  # since it was fetched
        if kept is not None:
            return kept
        assert isinstance(fetched, Encoded)
        sample = decode_window(fetched, self.input, seed, random_window(seed), self.short_side)
        if self.cache_room > 0 and fetched.clip.duration <= self.longest:
            frames = 0 if sample.frames_THWC is None else sample.frames_THWC.nbytes
            self.cache_room -= sample.waveform_S.nbytes + frames
            self.cached[fetched.index] = sample
        return sample


class _EvaluationClips(Dataset[Sample | UserError]):
    """Central windows, addressed by row."""

    def __init__(self, clips: ClipSet, input: InputConfig, modality: Modality) -> None:
        self.clips, self.input, self.modality = clips, input, modality

    def __getitems__(self, rows: Sequence[int]) -> list[Sample]:
        with ThreadPoolExecutor(1) as reader:
            coming = ahead(reader, self.clips.encoded, rows)
            return [self._sample(row, encoded) for row, encoded in zip(rows, coming, strict=True)]

    def _sample(self, row: int, encoded: Future[Encoded]) -> Sample:
        seed, size = draws.sample_seed(0, 0, row), self.input.video_size
        try:
            return decode_window(encoded.result(), self.input, seed, short_side=size, modality=self.modality)
        except (DecodeError, StorageError) as error:
            return Sample(np.zeros(0, np.int16), None, row, seed, (str(error),))


READ_AHEAD = 2
"""Clips that are read while another one is decoded."""


def ahead(reader: Executor, fetch: Callable[[At], Got], items: Iterable[At]) -> Iterator[Future[Got]]:
    """What `fetch` gets for each item, in order, up to `READ_AHEAD` items before it is asked for.

    Args:
        reader: one thread, since stores and orders know of no others. Reading, checksums and decoding all let go of
            Python's lock, so a core to spare does the first two.
    """
    coming = deque[Future[Got]]()
    for item in items:
        coming.append(reader.submit(fetch, item))
        if len(coming) > READ_AHEAD:
            yield coming.popleft()
    yield from coming


def _map(
    dataset: Dataset[Sample | UserError],
    batches: Iterable[Sequence[int]] | BatchPlaces,
    input: InputConfig,
    num_workers: int,
    prefetch: int,
) -> Iterator[RawBatch]:
    processes = _processes(num_workers, prefetch)
    return _checked(DataLoader(dataset, batch_sampler=batches, collate_fn=Collate(input), **processes))  # type: ignore[arg-type]


def _processes(num_workers: int, prefetch: int) -> dict[str, Any]:
    """DataLoader's arguments on processes and memory."""
    common: dict[str, Any] = {"num_workers": num_workers, "pin_memory": torch.cuda.is_available()}
    common["generator"] = torch.Generator()  # so that the global generator is left alone
    if num_workers:
        common |= {"prefetch_factor": prefetch, "multiprocessing_context": process_context()}
        common["worker_init_fn"] = _pay_no_heed
    return common


def _pay_no_heed(worker: int) -> None:
    """In a loader process: SIGTERM is ignored, though torch has just given it a handler that dies of it.

    A signal to a whole job reaches loaders too, and the training process needs them until it has saved.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_base: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


class _LoaderProcess(_base.Process):
    """Ended by SIGKILL where DataLoader would send SIGTERM."""

    def terminate(self) -> None:
        self.kill()


class _LoaderContext(type(_base)):  # type: ignore[misc]
    Process = _LoaderProcess


def process_context() -> BaseContext:
    """How loader processes start: never by forking this one, whose threads may hold locks.

    On Linux they are forked from a server that has imported what they need, once for all of them.
    """
    context: BaseContext = _LoaderContext()
    if sys.platform == "linux":
        context.set_forkserver_preload(["__main__", "avpretrain.data.loader_server"])
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
                f"the loader processes died ({str(error).splitlines()[0]}); "
                "if memory ran out, lower data.num_workers or data.prefetch"
            ) from None
        if isinstance(batch, UserError):
            raise batch
        yield batch
