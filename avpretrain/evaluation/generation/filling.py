"""Filling hidden patches by reversing diffusion, and how far the filling is from the truth.

B clips, L patches, K visible, N hidden, P values a patch.

A model trained with `norm_pix_loss` predicts patches without their mean and variance. Those two numbers are taken from
the nearest visible patches, never from the hidden truth (unless `statistics` is "own", which results then say).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avpretrain.config.model import DiffusionConfig
from avpretrain.core import draws
from avpretrain.core.errors import UsageError
from avpretrain.data.batch import AVBatch
from avpretrain.evaluation.settings import InpaintConfig
from avpretrain.methods.diffmavil.model import DiffMAViL, Side
from avpretrain.nn.diffusion import make_scheduler
from avpretrain.nn.losses import PatchStats
from avpretrain.nn.masking import gather_patches
from avpretrain.nn.patches import Grid
from avpretrain.nn.reconstruction import MaskedView, fill_hidden

METHODS = ("mean_fill", "neighbour_fill", "one_step", "sampled")
"""mean_fill: the clip's mean visible patch; neighbour_fill: flat patches at the mean of the nearest visible ones;
one_step: the decoder's word on pure noise (or mask tokens); sampled: the reverse chain, diffused decoders only."""

NEIGHBOURS = 4
"""Visible patches that lend a hidden one their mean and variance."""


@dataclass(frozen=True)
class Filled:
    """One batch, filled by each method."""

    pictures: dict[Side, dict[str, Tensor]]
    """Method -> [B, F, M] or [B, T, C, H, W], in the units of the model's input, visible patches untouched."""
    masks: dict[Side, Tensor]
    """1 where hidden, in the same shapes."""
    errors: dict[Side, dict[str, Tensor]]
    """Method -> [B]: mean squared error over the hidden values of each clip."""


@torch.no_grad()
def inpaint(model: DiffMAViL, batch: AVBatch, cfg: InpaintConfig) -> Filled:
    """Hides patches of every clip, drawn from its seed, and fills them.

    Raises:
        UsageError: the model predicts a teacher's features, or there are more steps than timesteps.
    """
    if model.cfg.objective == "features":
        raise UsageError("a model of objective 'features' predicts no patches")
    filled = Filled({}, {}, {})
    for side, view in model.encode_masked(batch, cfg.audio_ratio, cfg.video_ratio).items():
        truth_BNP = gather_patches(view.patches_BLP, view.mask.ids_hidden_BN)
        fillings = fill_patches(model, side, view, batch.seed_B, cfg)
        filled.errors[side] = {name: (x - truth_BNP).square().mean(dim=(1, 2)) for name, x in fillings.items()}
        patches = {n: fill_hidden(view.patches_BLP, x, view.mask.ids_hidden_BN) for n, x in fillings.items()}
        join = model.tower(side).patches.join
        filled.pictures[side] = {name: join(x_BLP) for name, x_BLP in patches.items()}
        filled.masks[side] = join(view.mask.mask_BL[:, :, None].expand_as(view.patches_BLP))
    return filled


def fill_patches(
    model: DiffMAViL, side: Side, view: MaskedView, seed_B: Tensor, cfg: InpaintConfig
) -> dict[str, Tensor]:
    """Method -> [B, N, P] in the units of the input."""
    grid = model.tower(side).spec.grid
    visible_BKP = gather_patches(view.patches_BLP, view.mask.ids_keep_BK)
    near = neighbour_stats(visible_BKP, view.mask.ids_keep_BK, view.mask.ids_hidden_BN, grid)
    own = PatchStats.of(gather_patches(view.patches_BLP, view.mask.ids_hidden_BN))
    shape = *view.mask.ids_hidden_BN.shape, visible_BKP.shape[2]
    fillings = {
        "mean_fill": visible_BKP.mean(dim=1, keepdim=True).expand(shape),
        "neighbour_fill": near.mean_BN1.expand(shape),
    }
    stats = None
    if model.cfg.loss.norm_pix_loss:
        stats = own if cfg.statistics == "own" else near
    start_BNP = draws.normal(seed_B, f"{side}_start", shape[1:])
    clean_BNP = model.tower(side).predict_clean(view, start_BNP, model.tower(side).process.last)
    fillings["one_step"] = clean_BNP if stats is None else stats.restore(clean_BNP)
    if model.tower(side).decoder.cfg.input == "diffused":
        fillings["sampled"] = _reverse(model, side, view, start_BNP, seed_B, cfg, stats)
    return fillings


def _reverse(
    model: DiffMAViL,
    side: Side,
    view: MaskedView,
    x_t_BNP: Tensor,
    seed_B: Tensor,
    cfg: InpaintConfig,
    stats: PatchStats | None,
) -> Tensor:
    """Runs the chain from pure noise to clean patches, [B, N, P] in the units of the input.

    The chain lives where noise was added in training: among normalised patches, or among pixels (`noise_on`), where the
    prediction is brought back to pixels at every step.
    """
    scheduler = sampler(model.cfg.diffusion, cfg, model.tower(side).process.shift)
    on_pixels = model.cfg.diffusion.noise_on == "pixel"
    generators = [torch.Generator(x_t_BNP.device).manual_seed(seed) for seed in seed_B.tolist()]
    for timestep in scheduler.timesteps.tolist():
        clean_BNP = model.tower(side).predict_clean(view, x_t_BNP, timestep)
        if on_pixels and stats is not None:
            clean_BNP = stats.restore(clean_BNP)
        x_t_BNP = scheduler.step(clean_BNP, timestep, x_t_BNP, generator=generators).prev_sample
    return x_t_BNP if on_pixels or stats is None else stats.restore(x_t_BNP)


def sampler(diffusion: DiffusionConfig, cfg: InpaintConfig, shift: float = 1.0) -> Any:
    """diffusers' scheduler of the process with this shift, set to `cfg.steps`."""
    if cfg.steps > diffusion.num_train_timesteps:
        raise UsageError(f"{cfg.steps} steps exceed the model's {diffusion.num_train_timesteps} timesteps")
    scheduler = make_scheduler(diffusion, cfg.sampler, shift)
    scheduler.set_timesteps(cfg.steps)
    return scheduler


def neighbour_stats(visible_BKP: Tensor, ids_keep_BK: Tensor, ids_hidden_BN: Tensor, grid: Grid) -> PatchStats:
    """Mean and variance for each hidden patch: those of its nearest visible ones, weighted by inverse squared distance.

    Distances are in patches, on the grid; time counts like space.
    """
    axes = [torch.arange(g, device=visible_BKP.device, dtype=torch.float32) for g in grid]
    places_LA = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    distance_BNK = torch.cdist(places_LA[ids_hidden_BN], places_LA[ids_keep_BK])
    near = distance_BNK.topk(min(NEIGHBOURS, ids_keep_BK.shape[1]), dim=-1, largest=False)
    weight_BNJ = near.values.pow(-2)
    weight_BNJ = weight_BNJ / weight_BNJ.sum(dim=-1, keepdim=True)
    stats = PatchStats.of(visible_BKP)
    rows_B11 = torch.arange(len(visible_BKP), device=visible_BKP.device)[:, None, None]
    mean_BNJ, var_BNJ = (x_BK1[rows_B11, near.indices, 0] for x_BK1 in (stats.mean_BN1, stats.var_BN1))
    return PatchStats(
        (mean_BNJ * weight_BNJ).sum(dim=-1, keepdim=True), (var_BNJ * weight_BNJ).sum(dim=-1, keepdim=True)
    )


def present(batch: AVBatch) -> dict[Side, Tensor]:
    """Which clips of a batch have each modality."""
    return batch.has
