"""Error of reconstructed spectrograms by frequency: what decoders make of hidden patches, low and high.

N clips, M mel bins, B clips of a batch, H hidden patches, P values a patch, F spectrogram frames.

A patch's mean and variance are given (`norm_pix_loss` leaves them out of the prediction), so what is measured is
detail: a patch's deviation from its own mean. The error is the share of the true detail's energy that is missed: 0 =
perfect, 1 = no better than flat patches at the right level. The detail's own energy is reported beside it, since a
blurred reconstruction has a small error and little detail, and a sampled one the reverse.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avpretrain.config.model import InputConfig
from avpretrain.core.errors import UserError
from avpretrain.data.batch import AVBatch
from avpretrain.data.features import LOWEST_HZ, Features
from avpretrain.data.read.dataset import eval_loader
from avpretrain.evaluation.generation.filling import fill_patches
from avpretrain.evaluation.generation.held_out import open_held_out
from avpretrain.evaluation.results import origin
from avpretrain.evaluation.settings import InpaintConfig, SpectrumConfig
from avpretrain.measures.intervals import Floats, Statistic, estimate
from avpretrain.measures.studies import MissedDetail, Spectrum
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.nn.masking import gather_patches
from avpretrain.nn.reconstruction import fill_hidden

METHODS = ("one_step", "sampled")
"""The decoder's word on pure noise or mask tokens; the reverse chain, diffused decoders only."""


@dataclass(frozen=True)
class Energies:
    """Energies of hidden values, [N, M] each, summed over time."""

    missed_NM: Floats
    """Of made less true."""
    made_NM: Floats
    """Of the made detail."""
    true_NM: Floats
    """Of the true detail."""


@torch.no_grad()
def energies(model: DiffMAViL, batch: AVBatch, how: InpaintConfig) -> dict[str, Energies]:
    """Method -> energies of the clips of a batch that have sound."""
    view = model.encode_masked(batch, how.audio_ratio, how.video_ratio)["audio"]
    truth_BHP = gather_patches(view.patches_BLP, view.mask.ids_hidden_BN).float()
    made = fill_patches(model, "audio", view, batch.seed_B, how)

    def by_mel(values_BHP: Tensor) -> Floats:
        whole_BLP = fill_hidden(torch.zeros_like(view.patches_BLP), values_BHP, view.mask.ids_hidden_BN)
        whole_BFM = model.tower("audio").patches.join(whole_BLP)
        return whole_BFM[batch.has_audio_B].double().square().sum(dim=1).cpu().numpy()

    true_BM = by_mel(_detail(truth_BHP))
    return {
        name: Energies(by_mel(made[name].float() - truth_BHP), by_mel(_detail(made[name].float())), true_BM)
        for name in METHODS
        if name in made
    }


def _detail(patches_BHP: Tensor) -> Tensor:
    return patches_BHP - patches_BHP.mean(dim=-1, keepdim=True)


def run_spectrum(checkpoint: Path, shards: Sequence[str], cfg: SpectrumConfig) -> Spectrum:
    """Reconstructs held-out clips and returns the result.

    Raises:
        UserError: no weights, no clips, or none with sound.
        UsageError: the model predicts no patches.
    """
    model, clips, rows = open_held_out(checkpoint, shards, cfg.split, cfg.clips)
    device = next(model.parameters()).device
    steps = min(cfg.steps, model.cfg.diffusion.num_train_timesteps)
    how = InpaintConfig(audio_ratio=cfg.ratio, video_ratio=cfg.ratio, steps=steps, statistics="own")
    features = Features(model.cfg.input).to(device)
    with eval_loader(clips, model.cfg.input, rows, cfg.batch_size, cfg.num_workers) as loader:
        parts = [energies(model, features(raw.to(device)), how) for raw in loader]
    by_method = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    heard = len(next(iter(by_method.values())).true_NM)
    if not heard or not all(e.true_NM.sum() for e in by_method.values()):
        raise UserError(f"no clip of split '{cfg.split}' has sound that could be read")
    return Spectrum(
        label=cfg.split,
        clips=heard,
        mel_hz=mel_centres(model.cfg.input),
        methods={name: _summary(e, cfg.seed) for name, e in by_method.items()},
        settings={**dataclasses.asdict(cfg), "steps": steps},
        **origin(checkpoint, model, clips, tuple(shards), cfg.seed),
    )


def _joined(parts: Sequence[Energies]) -> Energies:
    names = [field.name for field in dataclasses.fields(Energies)]
    return Energies(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _summary(e: Energies, seed: int) -> MissedDetail:
    """Shares over all clips: of the lower and the upper half of the mel bins with their intervals, and of each bin."""
    half = e.true_NM.shape[1] // 2
    result: dict[str, Any] = {}
    for name, part_NM in (("missed", e.missed_NM), ("detail", e.made_NM)):
        for place, bins in (("low", slice(0, half)), ("high", slice(half, None))):
            result[f"{name}_{place}"] = estimate(_share(part_NM[:, bins], e.true_NM[:, bins]), len(part_NM), seed)
        share_M = part_NM.sum(axis=0) / np.maximum(e.true_NM.sum(axis=0), 1e-12)
        result[f"{name}_by_mel"] = tuple(round(float(share), 5) for share in share_M)
    return MissedDetail(**result)


def _share(part_NX: Floats, whole_NX: Floats) -> Statistic:
    part_N, whole_N = part_NX.sum(axis=1), whole_NX.sum(axis=1)
    return lambda weight_RN: (weight_RN @ part_N) / (weight_RN @ whole_N)


def mel_centres(cfg: InputConfig) -> tuple[float, ...]:
    """Centre of each mel bin in Hz, on HTK's scale."""
    low, high = (1127 * math.log1p(hz / 700) for hz in (LOWEST_HZ, cfg.sample_rate / 2))
    width = (high - low) / (cfg.mels + 1)
    return tuple(round(700 * math.expm1((low + (i + 1) * width) / 1127), 1) for i in range(cfg.mels))
