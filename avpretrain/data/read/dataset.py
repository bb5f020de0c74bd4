"""Loaders: processes that decode clips, in an order that depends on neither their number nor the number of ranks.

B clips, T frames, H height, W width, C colours, S waveform samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch.utils.data import Dataset

from avpretrain.config.model import InputConfig
from avpretrain.config.schedules import Step
from avpretrain.config.train import DataConfig
from avpretrain.core import draws
from avpretrain.core.errors import UserError
from avpretrain.data.container import DecodeError
from avpretrain.data.read.clips import ClipSet, Encoded, Modality, Sample, decode_window
from avpretrain.data.read.collate import MAX_SKIPS, Collate, gave_up, random_window, training_short_side
from avpretrain.data.read.decoded import DecodedClips
from avpretrain.data.read.loader import Loader, process_context
from avpretrain.data.read.sampler import BatchPlaces, Order, Place, spread
from avpretrain.data.read.storage import RemoteStore, StorageError
from avpretrain.data.read.stream import ShardStream

At = TypeVar("At")
Got = TypeVar("Got")

__all__ = [
    "ClipSet",
    "Loader",
    "Modality",
    "ahead",
    "check_bad_share",
    "eval_loader",
    "process_context",
    "remote_roots",
    "train_loader",
]


def train_loader(
    cfg: DataConfig,
    input: InputConfig,
    seed: int,
    steps: Iterable[Step],
    rank: int = 0,
    world: int = 1,
    clips: ClipSet | None = None,
) -> Loader:
    """This rank's share of the batch of each step, decoded by `cfg.num_workers` processes; to be closed.

    Args:
        steps: the plan, from the step on that is to come next (`schedules.plan`, cut at the point of resumption).
        clips: the set behind `cfg.shards`, where it is open already.

    Raises:
        UsageError: a batch does not divide among the ranks.
        UserError: the data set can't be read, or too many clips in a row are damaged.
    """
    clips = clips or ClipSet(cfg.shards, cfg.split, cfg.cache_dir, cfg.request_timeout)
    order = Order(clips.shard_sizes, cfg.shuffle_window, seed)
    if cfg.mode == "stream":
        stream = ShardStream(clips, order, input, list(steps), rank, world, cfg.num_workers)
        return Loader(stream, cfg.num_workers, cfg.prefetch, remote_roots(clips), batch_size=None)
    places = BatchPlaces(order, steps, rank, world)
    decoded = DecodedClips(Path(cfg.decoded_dir), input, training_short_side(input)) if cfg.decoded_dir else None
    dataset = _TrainingClips(clips, order, input, cfg.memory_cache_mb << 20, decoded)
    options = {"batch_sampler": places, "collate_fn": Collate(input)}
    return Loader(dataset, cfg.num_workers, cfg.prefetch, remote_roots(clips), **options)


def eval_loader(
    clips: ClipSet,
    input: InputConfig,
    rows: Sequence[int],
    batch_size: int,
    num_workers: int = 0,
    modality: Modality = "both",
) -> Loader:
    """Clips in the order of `rows`, each by its central window, frames already small; to be closed.

    A clip that can't be decoded stays in its place without audio and video, and is counted in `failed`.

    Args:
        modality: what to decode; the other modality counts as absent.
    """
    batches = list(spread(rows, batch_size))
    options = {"batch_sampler": batches, "collate_fn": Collate(input)}
    return Loader(_EvaluationClips(clips, input, modality), num_workers, 2, remote_roots(clips), **options)


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


class _TrainingClips(Dataset[Sample]):
    """Random windows, addressed by place; a clip that fails gives way to the next one of its window of shards.

    Args:
        cache_bytes: of decoded clips to keep, in each process, where a clip fits the model's input and so has but one
            window: it is the same in every epoch.
        decoded: keeps such clips on disk as well.
    """

    def __init__(
        self,
        clips: ClipSet,
        order: Order,
        input: InputConfig,
        cache_bytes: int = 0,
        decoded: DecodedClips | None = None,
    ) -> None:
        self.clips, self.order, self.input, self.decoded = clips, order, input, decoded
        self.short_side = training_short_side(input)
        self.longest = min(input.audio_seconds, input.video_seconds)
        self.cache_room, self.cached = cache_bytes, dict[int, Sample]()

    def __getitems__(self, places: Sequence[Place]) -> list[Sample]:
        with ThreadPoolExecutor(1) as reader:
            coming = ahead(reader, self._fetch, places)
            return [self._sample(place, fetched, reader) for place, fetched in zip(places, coming, strict=True)]

    def _fetch(self, place: Place, skip: int = 0) -> Encoded | Sample:
        row = self.order.row(place, skip)
        if row in self.cached:
            return self.cached[row]
        if self.decoded is not None:
            clip = self.clips.clip(row)
            kept = self.decoded.read(clip, row) if clip.duration <= self.longest else None
            if kept is not None:
                return kept
        return self.clips.encoded(row)

    def _sample(self, place: Place, fetched: Future[Encoded | Sample], reader: Executor) -> Sample:
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
        raise gave_up(reasons)

    def _decode(self, fetched: Encoded | Sample, seed: int) -> Sample:
        kept = fetched if isinstance(fetched, Sample) else self.cached.get(fetched.index)  # since it was fetched
        if kept is not None:
            self._remember(kept)
            return kept
        assert isinstance(fetched, Encoded)
        sample = decode_window(fetched, self.input, seed, random_window(seed), self.short_side)
        if fetched.clip.duration <= self.longest:
            self._remember(sample)
            if self.decoded is not None:
                self.decoded.keep(fetched.clip, sample)
        return sample

    def _remember(self, sample: Sample) -> None:
        if self.cache_room > 0 and sample.index not in self.cached:
            frames = 0 if sample.frames_THWC is None else sample.frames_THWC.nbytes
            self.cache_room -= sample.waveform_S.nbytes + frames
            self.cached[sample.index] = sample


class _EvaluationClips(Dataset[Sample]):
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


def remote_roots(clips: ClipSet) -> list[str]:
    """The URLs among the sets of clips, which a loader may have to wait for."""
    return [store.root for store in clips.stores if isinstance(store, RemoteStore)]
