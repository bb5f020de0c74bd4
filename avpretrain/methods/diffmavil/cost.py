"""Floating-point operations of one clip, counted part by part from the model's own modules, and what an adaptive batch
holds constant.

Torch is imported where something is counted, so that a plan of constant batches needs none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

from avpretrain.config.model import SIDES, FusionConfig, TowerSpec
from avpretrain.config.scaling import LayerSizes
from avpretrain.config.schedules import Cost, Phase, Step, cost_by_rule, kept, plan
from avpretrain.cost.flops import FlopCount, Flops
from avpretrain.methods.diffmavil.config import ModelConfig, TrainConfig
from avpretrain.methods.diffmavil.curriculum import MaskRatios, phase_at
from avpretrain.methods.diffmavil.memory import activation_bytes, tokens

if TYPE_CHECKING:
    from avpretrain.nn.tower import Tower

COMPONENTS = (
    "patch_embed",
    "audio_encoder",
    "video_encoder",
    "fusion",
    "audio_decoder",
    "video_decoder",
    "contrastive",
    "teacher",
)
"""Where a clip's FLOPs go, in the order of the forward pass."""


@functools.lru_cache(maxsize=4096)
def clip_flops(cfg: ModelConfig, audio_ratio: float, video_ratio: float, batch_size: int = 1) -> FlopCount:
    """FLOPs of one clip in one training step.

    Args:
        audio_ratio, video_ratio: shares of patches hidden.
        batch_size: clips over all ranks, which each clip is contrasted with.
    """
    towers = {side: cfg.tower(side) for side in SIDES}
    embeds, encoders, decoders = zip(
        *(_tower_flops(towers[side], ratio) for side, ratio in zip(SIDES, (audio_ratio, video_ratio), strict=True)),
        strict=True,
    )
    visible = tokens(cfg, "audio", audio_ratio), tokens(cfg, "video", video_ratio)
    pairs = cfg.views + (2 if cfg.views == 2 else 0)
    parts = {
        "patch_embed": (embeds[0] + embeds[1]) * cfg.views,
        "audio_encoder": encoders[0] * cfg.views,
        "video_encoder": encoders[1] * cfg.views,
        "fusion": _fusion_flops(*_fusion_of(cfg), *visible, True) * cfg.decode_views,
        "audio_decoder": decoders[0] * cfg.decode_views,
        "video_decoder": decoders[1] * cfg.decode_views,
        "contrastive": _contrast_flops(cfg.width) * (pairs * batch_size),
        "teacher": _teacher_flops(cfg),
    }
    return FlopCount({name: parts[name] for name in COMPONENTS})


@functools.lru_cache(maxsize=64)
def _tower(spec: TowerSpec) -> Tower:
    """Without memory."""
    from avpretrain.cost.count import on_meta
    from avpretrain.nn.tower import Tower

    return cast(Tower, on_meta(lambda: Tower(spec)))


@functools.lru_cache(maxsize=4096)
def _tower_flops(spec: TowerSpec, ratio: float) -> tuple[Flops, Flops, Flops]:
    """Of one view: patch embedding, encoder, decoder."""
    import torch

    from avpretrain.cost.count import META, count

    encoder, decoder = _tower(spec).encoder, _tower(spec).decoder
    visible = kept(spec.patches, ratio)
    hidden = spec.decoded(spec.patches - visible)
    with META, torch.enable_grad():
        ids_BK, ids_BN = torch.empty(1, visible, dtype=torch.int64), torch.empty(1, hidden, dtype=torch.int64)
        visible_BKP = torch.empty(1, visible, spec.patch_values)
        context_BCD = torch.empty(1, visible + encoder.prefix, spec.width, requires_grad=True)
        diffused = {}
        if spec.decoder.input == "diffused":
            timesteps = (1, hidden) if spec.diffusion.noise_level == "patch" else (1,)
            diffused["noisy_BNP"] = torch.empty(1, hidden, spec.noised_values)
            diffused["timestep_B"] = torch.empty(timesteps, dtype=torch.int64)
        levels = dict.fromkeys(spec.decoder.levels, context_BCD)
        embed = count(encoder, lambda: encoder.patch_embed(visible_BKP))
        whole = count(encoder, lambda: encoder(visible_BKP, ids_BK))
        decoded = count(decoder, lambda: decoder(context_BCD, ids_BK, ids_BN, **diffused, levels=levels))
    return embed, whole - embed, decoded


def _fusion_of(cfg: ModelConfig) -> tuple[FusionConfig, int, LayerSizes, int]:
    """What the fusion layers are built from."""
    return cfg.fusion, cfg.width, cfg.stack(cfg.fusion), cfg.width // cfg.heads


@functools.lru_cache(maxsize=4096)
def _fusion_flops(
    cfg: FusionConfig, width: int, layers: LayerSizes, head_width: int, audio: int, video: int, training: bool
) -> Flops:
    """Of so many audio and video tokens."""
    import torch

    from avpretrain.cost.count import META, count, on_meta
    from avpretrain.nn.encoder import Fusion

    fusion = on_meta(lambda: Fusion(cfg, width, layers, head_width))
    given = [torch.empty(1, length, width, device=META, requires_grad=training) for length in (audio, video)]
    with torch.set_grad_enabled(training):
        return count(fusion, lambda: fusion(*given))


@functools.lru_cache
def _contrast_flops(width: int) -> Flops:
    """Of one clip against one other in one pair of embeddings."""
    import torch
    from torch import nn

    from avpretrain.cost.count import META, count
    from avpretrain.nn.losses import similarity

    clips = 2
    pooled = [torch.empty(clips, width, device=META, requires_grad=True) for _ in range(2)]
    with torch.enable_grad():
        return count(nn.Identity(), lambda: similarity(pooled[0], pooled[1], 1.0)) * (1 / clips**2)


@functools.lru_cache
def _teacher_flops(cfg: ModelConfig) -> Flops:
    """A frozen model of the same size over whole clips: encoders and fusion, forward only."""
    import torch

    from avpretrain.cost.count import META, count

    if cfg.objective == "patches":
        return Flops()
    total, lengths = Flops(), []
    for side in SIDES:
        tower = _tower(cfg.tower(side))
        patches_BLP = torch.empty(1, tower.spec.patches, tower.patches.values, device=META)
        with META, torch.no_grad():
            total += count(tower, functools.partial(tower.encoder, patches_BLP))
        lengths.append(tower.spec.patches + tower.encoder.prefix)
    return total + _fusion_flops(*_fusion_of(cfg), lengths[0], lengths[1], False)


def visible_tokens(cfg: ModelConfig, audio_ratio: float, video_ratio: float) -> float:
    """Tokens that the encoders see of one view of one clip."""
    return float(tokens(cfg, "audio", audio_ratio) + tokens(cfg, "video", video_ratio))


def cost_of(cfg: ModelConfig, rule: str) -> Cost:
    """What an adaptive batch holds constant of one clip, as a function of the masking ratios.

    Args:
        rule: `schedule.batch.rule`. flops counts forward and backward without the contrast, which depends on the batch.
    """
    count: Callable[[ModelConfig, float, float], float] = {
        "visible_tokens": visible_tokens,
        "flops": lambda cfg, audio, video: clip_flops(cfg, audio, video, 0).training,
        "memory": activation_bytes,
    }[rule]

    def cost(phase: Phase) -> float:
        ratios = cast(MaskRatios, phase)
        return count(cfg, ratios.audio, ratios.video)

    return cost


def plan_of(cfg: TrainConfig, total: int) -> Iterator[Step]:
    """The steps of a run of DiffMAViL that sees `total` clips.

    Raises:
        UsageError: the run is shorter than its first batch.
    """
    cost = cost_by_rule(cfg.schedule.batch, functools.partial(cost_of, cfg.model))
    return plan(cfg.schedule, cfg.optim, total, functools.partial(phase_at, cfg=cfg.schedule), cost)
