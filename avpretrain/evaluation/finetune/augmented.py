"""Labelled clips for fine-tuning: their order, and what is done to them in training.

B clips, S waveform samples, F spectrogram frames, M mel bins, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avpretrain.config.model import InputConfig
from avpretrain.core import draws
from avpretrain.data.batch import AVBatch, RawBatch
from avpretrain.data.container import DecodeError
from avpretrain.data.read.clips import ClipSet, Encoded, Modality, Sample, decode_window
from avpretrain.data.read.collate import Collate, random_window, training_short_side
from avpretrain.data.read.dataset import Loader, ahead, remote_roots
from avpretrain.data.read.storage import StorageError
from avpretrain.evaluation.finetune.recipes import FinetuneConfig

BETA = 10.0
"""Mixup's lambda comes from Beta(10, 10) (AudioMAE)."""

Place = tuple[int, int, int]
"""Index into the task, row of the clip, seed of the sample."""


@dataclass(frozen=True)
class EpochPlan:
    """Which clips come in which order; a function of the seed, the same on every rank."""

    train: NDArray[np.int64]
    """Indices into the task."""
    rows_N: NDArray[np.int64]
    target: NDArray[np.generic]
    cfg: FinetuneConfig

    @property
    def samples(self) -> int:
        """Clips drawn for an epoch."""
        return self.cfg.samples_per_epoch or len(self.train)

    @property
    def steps(self) -> int:
        """Batches of an epoch; a last one that is not full is left out, unless it is the only one."""
        return max(1, self.samples // self.cfg.batch_size)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Indices into the task, in order."""
        rng = np.random.default_rng([self.cfg.seed, epoch])
        if self.cfg.balanced:
            return rng.choice(self.train, self.samples, p=balanced_weights(self.target[self.train]))
        rounds = -(-self.samples // len(self.train))
        return np.concatenate([rng.permutation(self.train) for _ in range(rounds)])[: self.samples]


def balanced_weights(target: NDArray[np.generic]) -> NDArray[np.float64]:
    """Chances [N] by which every class comes equally often; of a clip with several classes they add up."""
    one_hot_NC = target if target.ndim == 2 else np.eye(int(target.max()) + 1)[target.astype(np.int64)]
    counts_C = one_hot_NC.sum(axis=0)
    weight_N = (one_hot_NC / np.maximum(counts_C, 1)).sum(axis=1)
    weight_N = np.where(weight_N > 0, weight_N, 1 / len(weight_N))
    return weight_N / weight_N.sum()


class Batches:
    """Batch sampler: this rank's share of each batch of all epochs."""

    def __init__(self, plan: EpochPlan, rank: int, world: int) -> None:
        self.plan, self.rank, self.world = plan, rank, world

    def __len__(self) -> int:
        return self.plan.steps * self.plan.cfg.epochs

    def __iter__(self) -> Iterator[list[Place]]:
        size = self.plan.cfg.batch_size
        for epoch in range(self.plan.cfg.epochs):
            order = self.plan.epoch(epoch)
            for start in range(0, self.plan.steps * size, size):
                chosen = order[start : start + size]
                yield [
                    (int(i), int(self.plan.rows_N[i]), draws.sample_seed(self.plan.cfg.seed, epoch, start + p))
                    for p, i in list(enumerate(chosen))[self.rank :: self.world]
                ]


class _Windows(Dataset[Sample]):
    """Random windows of clips; one that can't be read comes without sound and picture. `Sample.index` is the task's."""

    def __init__(self, clips: ClipSet, input: InputConfig, modality: Modality) -> None:
        self.clips, self.input, self.modality = clips, input, modality

    def __getitems__(self, places: Sequence[Place]) -> list[Sample]:
        with ThreadPoolExecutor(1) as reader:
            coming = ahead(reader, self.clips.encoded, (row for _, row, _ in places))
            return [self._sample(place, encoded) for place, encoded in zip(places, coming, strict=True)]

    def _sample(self, place: Place, encoded: Future[Encoded]) -> Sample:
        index, _, seed = place
        at, side = random_window(seed), training_short_side(self.input)
        try:
            sample = decode_window(encoded.result(), self.input, seed, at, side, self.modality)
        except (DecodeError, StorageError) as error:
            return Sample(np.zeros(0, dtype=np.int16), None, index, seed, (str(error),))
        return replace(sample, index=index)


def augmented_loader(clips: ClipSet, input: InputConfig, cfg: FinetuneConfig, batches: Batches) -> Loader:
    """Batches of all epochs; `index_B` holds indices into the task; to be closed."""
    options = {"batch_sampler": batches, "collate_fn": Collate(input)}
    return Loader(_Windows(clips, input, cfg.modality), cfg.num_workers, 2, remote_roots(clips), **options)


@dataclass(frozen=True)
class Mix:
    """Which clip each one is mixed with, and its own share."""

    partner_B: Tensor
    own_B: Tensor

    def targets(self, target_BC: Tensor) -> Tensor:
        """Targets mixed as the clips were."""
        own_B1 = self.own_B[:, None]
        return own_B1 * target_BC + (1 - own_B1) * target_BC[self.partner_B]

    def waveforms(self, raw: RawBatch) -> RawBatch:
        """Sounds mixed sample by sample; as long as the longer of the two."""
        own_B1 = self.own_B[:, None]
        mixed_BS = own_B1 * raw.waveform_BS.float() + (1 - own_B1) * raw.waveform_BS[self.partner_B].float()
        other_B = torch.where(self.own_B < 1, raw.samples_B[self.partner_B], raw.samples_B)
        return replace(
            raw, waveform_BS=mixed_BS.round().to(torch.int16), samples_B=torch.maximum(raw.samples_B, other_B)
        )

    def frames(self, batch: AVBatch) -> AVBatch:
        """Pictures mixed pixel by pixel."""
        own = self.own_B[:, None, None, None, None]
        return replace(batch, video_BTCHW=own * batch.video_BTCHW + (1 - own) * batch.video_BTCHW[self.partner_B])


def draw_mix(seed_B: Tensor, share: float) -> Mix:
    """Partners and shares for a batch: a function of its clips' seeds."""
    rng = np.random.default_rng((seed_B.cpu().numpy().astype(np.int64) & 0x7FFFFFFFFFFFFFFF).tolist())
    partner = torch.from_numpy(rng.permutation(len(seed_B)))
    mixed = rng.random(len(seed_B)) < share
    own = torch.from_numpy(np.where(mixed, rng.beta(BETA, BETA, len(seed_B)), 1.0).astype(np.float32))
    return Mix(partner.to(seed_B.device), own.to(seed_B.device))


def spec_augment(x_BFM: Tensor, seed_B: Tensor, bins: int, frames: int) -> Tensor:
    """Blanks a band of up to `bins` mel bins and a stretch of up to `frames` frames (SpecAugment, Park et al. 2019)."""
    for axis, (most, name) in enumerate(((min(frames, x_BFM.shape[1] // 3), "time"), (bins, "frequency")), start=1):
        size = x_BFM.shape[axis]
        width_B = draws.uniform(seed_B, f"specaug_{name}_width") * min(most, size)
        start_B = draws.uniform(seed_B, f"specaug_{name}_start") * (size - width_B)
        place = torch.arange(size, device=x_BFM.device)
        blank = (place >= start_B[:, None].floor()) & (place < (start_B.floor() + width_B.floor())[:, None])
        x_BFM = x_BFM.masked_fill(blank[:, :, None] if axis == 1 else blank[:, None, :], 0.0)
    return x_BFM
