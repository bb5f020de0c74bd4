"""What the encoder's context is worth to the decoders, by timestep: whether denoising needs an encoder at all.

N clips, B clips of a batch, H hidden patches, P values a patch, K levels of noise.

The benefit of context is the error of clean patches with another clip's context (masked at the same places) less that
with the clip's own. Where it is 0 the decoder reads its input alone, and no gradient of use reaches the encoder. Of a
whole training counts what is drawn: the mean over its timesteps, and that as a share of the benefit at pure noise.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avpretrain.core import draws
from avpretrain.core.errors import UserError
from avpretrain.data.batch import AVBatch
from avpretrain.data.features import Features
from avpretrain.data.read.dataset import eval_loader
from avpretrain.evaluation.generation.held_out import open_held_out
from avpretrain.evaluation.results import origin
from avpretrain.evaluation.settings import ContextConfig
from avpretrain.measures.intervals import Floats, Statistic, estimate
from avpretrain.measures.results import Estimate
from avpretrain.measures.studies import Benefit, Context
from avpretrain.methods.diffmavil.model import SIDES, DiffMAViL, Side
from avpretrain.nn.losses import normalise_patches
from avpretrain.nn.masking import gather_patches
from avpretrain.nn.reconstruction import MaskedView

UNDEFINED = Estimate(value=None)
DRAWS = 1 << 16
"""Timesteps drawn to learn how often each level of noise is trained."""


@dataclass(frozen=True)
class Levels:
    """The levels of noise of one modality."""

    timesteps: tuple[int, ...]
    alphas_cumprod: tuple[float, ...]
    share: tuple[float, ...]
    """Of a training's draws that fall to each."""
    weight: tuple[float, ...]
    """Of the training's loss, on squared errors of the clean patch."""


@dataclass(frozen=True)
class Worth:
    """Mean squared errors of clean patches and encoder gradients, [N, K] each, of the clips that have the modality."""

    own_NK: Floats
    other_NK: Floats
    """With another clip's context."""
    gradient_NK: Floats
    """Norm of the weighted loss's gradient with respect to a clip's context."""


def levels_of(model: DiffMAViL, side: Side, count: int) -> Levels:
    """Which levels of noise are looked at, and how often training draws them; mask tokens know pure noise alone."""
    diffusion, process = model.cfg.diffusion, model.tower(side).process
    last = diffusion.num_train_timesteps
    if model.tower(side).decoder.cfg.input == "mask_token":
        return Levels((last,), (0.0,), (1.0,), (1.0,))
    edges = np.unique(np.linspace(0, last, min(count, last) + 1).round().astype(int))
    timesteps = [int(a + b - 1) // 2 for a, b in itertools.pairwise(edges)]
    seed_B = torch.arange(DRAWS, device=process.alphas_cumprod_T.device)
    drawn = process.draw_timesteps(seed_B, f"{side}_0", 1).flatten().cpu().numpy()
    shares = [float(np.mean((drawn >= a) & (drawn < b))) for a, b in itertools.pairwise(edges)]
    if diffusion.mask_share:
        timesteps, shares = [*timesteps, last], [*shares, float(np.mean(drawn == last))]
    asked = torch.tensor(timesteps, device=seed_B.device)
    weights = process.loss_weight(asked) * process.error_scale(asked)
    alphas = process.alphas_cumprod_T[asked].tolist()
    return Levels(tuple(timesteps), tuple(alphas), tuple(shares), tuple(weights.tolist()))


def measure(model: DiffMAViL, batch: AVBatch, side: Side, levels: Levels, ratio: float) -> Worth:
    """What context is worth to a batch's clips that have this modality, and borrow from one that has it."""
    has_B = batch.has[side]
    lent = dataclasses.replace(
        batch, audio_BFM=batch.audio_BFM.roll(1, 0), video_BTCHW=batch.video_BTCHW.roll(1, 0)
    )  # under the same seeds, so that it is masked at the same places
    with torch.no_grad():
        own = model.encode_masked(batch, ratio, ratio)[side]
        other = model.encode_masked(lent, ratio, ratio)[side]
    pixels_BHP = gather_patches(own.patches_BLP, own.mask.ids_hidden_BN).float()
    clean_BHP = normalise_patches(pixels_BHP) if model.cfg.loss.norm_pix_loss else pixels_BHP
    noised_BHP = pixels_BHP if model.cfg.diffusion.noise_on == "pixel" else clean_BHP
    noise_BHP = draws.normal(batch.seed_B, f"{side}_context", noised_BHP.shape[1:])
    columns = [
        _at(model, side, (own, other), clean_BHP, _noised(model, side, noised_BHP, noise_BHP, timestep), timestep, w)
        for timestep, w in zip(levels.timesteps, levels.weight, strict=True)
    ]
    fair_B = has_B & has_B.roll(1, 0)
    arrays = (torch.stack(values, dim=1)[fair_B].double().cpu().numpy() for values in zip(*columns, strict=True))
    return Worth(*arrays)


def _noised(model: DiffMAViL, side: Side, clean_BHP: Tensor, noise_BHP: Tensor, timestep: int) -> Tensor | None:
    if model.tower(side).decoder.cfg.input == "mask_token":
        return None
    timestep_B = torch.full((len(clean_BHP),), timestep, device=clean_BHP.device)
    return model.tower(side).process.add_noise(clean_BHP, noise_BHP, timestep_B)


def _at(
    model: DiffMAViL, side: Side, views: tuple[MaskedView, MaskedView], clean_BHP: Tensor, x_t_BHP: Tensor | None,
    timestep: int, weight: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """[B] each: error with own context, with the other's, and the norm of the weighted gradient at the own context."""
    own, other = views
    leaves = [own.context_BCD, *own.levels.values()]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    levels = dict(zip(own.levels, leaves[1:], strict=True))
    view = dataclasses.replace(own, context_BCD=leaves[0], levels=levels)
    with torch.enable_grad():
        prediction_BHP = model.tower(side).predict_clean(view, x_t_BHP, timestep)
        own_B = (prediction_BHP.float() - clean_BHP).square().mean(dim=(1, 2))
        gradients = torch.autograd.grad(weight * own_B.sum(), leaves)  # clips do not meet, so each has its own
    gradient_B = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
    with torch.no_grad():
        prediction_BHP = model.tower(side).predict_clean(other, x_t_BHP, timestep)
        other_B = (prediction_BHP.float() - clean_BHP).square().mean(dim=(1, 2))
    return own_B.detach(), other_B, gradient_B


def run_context(checkpoint: Path, shards: Sequence[str], cfg: ContextConfig) -> Context:
    """Measures what context is worth to each decoder of a checkpoint on held-out clips.

    Raises:
        UserError: no weights, or too few clips.
        UsageError: the model predicts no patches.
    """
    model, clips, rows = open_held_out(checkpoint, shards, cfg.split, cfg.clips)
    model.requires_grad_(False)
    device = next(model.parameters()).device
    levels = {side: levels_of(model, side, cfg.levels) for side in SIDES}
    features = Features(model.cfg.input).to(device)
    worths: dict[Side, list[Worth]] = {side: [] for side in SIDES}
    for raw in eval_loader(clips, model.cfg.input, rows, cfg.batch_size, cfg.num_workers):
        if len(raw.seed_B) < 2:  # nobody to borrow a context from
            continue
        batch = features(raw.to(device))
        for side in SIDES:
            worths[side].append(measure(model, batch, side, levels[side], cfg.ratio))
    sides: dict[str, Benefit] = {
        side: summary(model.tower(side).decoder.cfg.input, levels[side], parts, cfg.seed)
        for side, parts in worths.items()
        if _clips(parts)
    }
    if not sides:
        raise UserError(f"split '{cfg.split}' has too few clips: a context is borrowed from another clip of a batch")
    return Context(
        label=cfg.split,
        clips={side: _clips(parts) for side, parts in worths.items()},
        sides=sides,
        settings=dataclasses.asdict(cfg),
        **origin(checkpoint, model, clips, tuple(shards), cfg.seed),
    )


def _clips(parts: Sequence[Worth]) -> int:
    return sum(len(part.own_NK) for part in parts)


def summary(input: str, levels: Levels, parts: Sequence[Worth], seed: int) -> Benefit:
    """Means over clips at each level, and over the draws of a training with their intervals.

    Args:
        input: of the decoder.
    """
    own_NK, other_NK, gradient_NK = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("own_NK", "other_NK", "gradient_NK")
    )
    benefit_NK, share_K = other_NK - own_NK, np.array(levels.share)
    drawn_N, purest_N = benefit_NK @ share_K, benefit_NK[:, -1]

    def mean(values: Floats) -> tuple[float, ...]:
        return tuple(round(float(x), 6) for x in values.mean(axis=0))

    def ratio(weight_RN: Floats) -> Floats:
        below_R = weight_RN @ purest_N
        return np.divide(weight_RN @ drawn_N, below_R, out=np.full_like(below_R, np.nan), where=below_R > 0)

    drawn: Statistic = lambda weight_RN: weight_RN @ drawn_N / weight_RN.sum(axis=1)  # noqa: E731
    return Benefit(
        input=input,
        timesteps=levels.timesteps,
        alphas_cumprod=levels.alphas_cumprod,
        share=levels.share,
        weight=levels.weight,
        error_own=mean(own_NK),
        error_other=mean(other_NK),
        benefit=mean(benefit_NK),
        gradient=mean(gradient_NK),
        benefit_of_draws=estimate(drawn, len(own_NK), seed),
        effective_share=estimate(ratio, len(own_NK), seed) if purest_N.mean() > 0 else UNDEFINED,
        gradient_of_draws=round(float((gradient_NK @ share_K).mean()), 6),
    )
