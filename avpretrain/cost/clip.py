"""Floating-point operations of one clip, from the config alone, and what an adaptive batch holds constant.

Nothing here imports torch. Counted are matrix products (2 m n k each), as `torch.utils.flop_counter.FlopCounterMode`
counts them; a test holds the two equal for every option of the model. The backward pass has two products for each one
of the forward pass, less the gradients of inputs that need none. What kernels compute twice (flash attention
recomputes its scores) is not counted, so that a number means the same on every machine.

L tokens, D width, N queries, C context tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

from avpretrain.config.curriculum import MaskRatios, phase_at
from avpretrain.config.model import DecoderConfig, ModelConfig
from avpretrain.config.schedules import Cost, Phase, Step, cost_by_rule, plan
from avpretrain.config.train import TrainConfig
from avpretrain.cost.memory import activation_bytes
from avpretrain.cost.sizes import Side, side, visible_tokens

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

TIMESTEP_SINUSOIDS = 256


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of a part of the model."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int | float) -> Flops:
        return Flops(self.forward * times, self.backward * times)

    @property
    def training(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


@dataclass(frozen=True, slots=True)
class FlopCount:
    """Floating-point operations of one clip, by component."""

    components: dict[str, Flops]
    """Keys are `COMPONENTS`, in their order."""

    @property
    def forward(self) -> float:
        return sum(part.forward for part in self.components.values())

    @property
    def training(self) -> float:
        return sum(part.training for part in self.components.values())


def _linear(rows: int, inputs: int, outputs: int, first: bool = False) -> Flops:
    """A linear layer; the `first` one of the model needs no gradient of its input."""
    forward = 2.0 * rows * inputs * outputs
    return Flops(forward, forward if first else 2 * forward)


def _scores(queries: int, keys: int, width: int) -> Flops:
    """Attention proper: queries times keys, then weights times values."""
    forward = 4.0 * queries * keys * width
    return Flops(forward, 2 * forward)


def _self_attention(tokens: int, width: int) -> Flops:
    return _linear(tokens, width, 4 * width) + _scores(tokens, tokens, width)


def _cross_attention(queries: int, context: int, width: int) -> Flops:
    return _linear(queries, width, 2 * width) + _linear(context, width, 2 * width) + _scores(queries, context, width)


def _mlp(tokens: int, width: int, hidden: int) -> Flops:
    return _linear(tokens, width, 2 * hidden)


def _block(tokens: int, cfg: ModelConfig) -> Flops:
    return _self_attention(tokens, cfg.width) + _mlp(tokens, cfg.width, int(cfg.width * cfg.mlp_ratio))


def _fusion(cfg: ModelConfig, audio: Side, video: Side) -> Flops:
    if cfg.fusion.kind == "joint":
        return _block(audio.tokens + video.tokens, cfg) * cfg.fusion.depth
    shared = cfg.fusion.bottleneck_tokens
    return (_block(audio.tokens + shared, cfg) + _block(video.tokens + shared, cfg)) * cfg.fusion.depth


def _decoder_block(cfg: DecoderConfig, sizes: Side) -> Flops:
    mlp = 4 * cfg.width
    if cfg.window:
        window = cfg.window[0] * cfg.window[1]
        return (_self_attention(window, cfg.width) + _mlp(window, cfg.width, mlp)) * (sizes.patches // window)
    if cfg.kind == "joint":
        tokens = sizes.tokens + sizes.decoded
        return _self_attention(tokens, cfg.width) + _mlp(tokens, cfg.width, mlp)
    block = _cross_attention(sizes.decoded, sizes.tokens, cfg.width) + _mlp(sizes.decoded, cfg.width, mlp)
    return block + _self_attention(sizes.decoded, cfg.width) if cfg.kind == "cross_self" else block


def _decoder(cfg: DecoderConfig, model: ModelConfig, sizes: Side) -> Flops:
    """Context embedding, diffused patches and their timestep, blocks, head."""
    total = _linear(sizes.tokens, model.width, cfg.width) + _decoder_block(cfg, sizes) * cfg.depth
    total += _linear(sizes.tokens, model.width, cfg.width) * len(set(cfg.levels) - {0})
    total += _linear(sizes.decoded, cfg.width, sizes.predicted_values)
    if cfg.input == "mask_token":
        return total
    total += _linear(sizes.decoded, sizes.noised_values, cfg.width, first=True)
    conditioning = model.diffusion.time_conditioning
    if conditioning != "none":
        levels = sizes.decoded if model.diffusion.noise_level == "patch" else 1
        total += _linear(levels, TIMESTEP_SINUSOIDS, cfg.width, first=True) + _linear(levels, cfg.width, cfg.width)
    if conditioning == "adaln":
        branches = 3 if cfg.kind == "cross_self" else 2
        windows = sizes.patches // (cfg.window[0] * cfg.window[1]) if cfg.window else 1
        total += _linear(windows, cfg.width, 3 * branches * cfg.width) * cfg.depth
    return total


def _teacher(cfg: ModelConfig, audio: Side, video: Side) -> Flops:
    """A frozen model of the same size over whole clips: encoders and fusion, forward only."""
    if cfg.objective == "patches":
        return Flops()
    audio, video = replace(audio, visible=audio.patches), replace(video, visible=video.patches)
    towers = _block(audio.tokens, cfg) * cfg.audio.depth + _block(video.tokens, cfg) * cfg.video.depth
    patches = [_linear(s.patches, s.patch_values, cfg.width) for s in (audio, video)]
    return Flops(forward=(patches[0] + patches[1] + towers + _fusion(cfg, audio, video)).forward)


def clip_flops(cfg: ModelConfig, audio_ratio: float, video_ratio: float, batch_size: int = 1) -> FlopCount:
    """FLOPs of one clip in one training step.

    Args:
        audio_ratio, video_ratio: shares of patches hidden.
        batch_size: clips over all ranks, which each clip is contrasted with.
    """
    audio, video = side(cfg, "audio", audio_ratio), side(cfg, "video", video_ratio)
    similarity = 2.0 * batch_size * cfg.width
    pairs = cfg.views + (2 if cfg.views == 2 else 0)
    patches = [_linear(s.visible, s.patch_values, cfg.width, first=True) for s in (audio, video)]
    parts = {
        "patch_embed": (patches[0] + patches[1]) * cfg.views,
        "audio_encoder": _block(audio.tokens, cfg) * (cfg.audio.depth * cfg.views),
        "video_encoder": _block(video.tokens, cfg) * (cfg.video.depth * cfg.views),
        "fusion": _fusion(cfg, audio, video) * cfg.decode_views,
        "audio_decoder": _decoder(cfg.audio.decoder, cfg, audio) * cfg.decode_views,
        "video_decoder": _decoder(cfg.video.decoder, cfg, video) * cfg.decode_views,
        "contrastive": Flops(similarity, 2 * similarity) * pairs,
        "teacher": _teacher(cfg, audio, video),
    }
    return FlopCount({name: parts[name] for name in COMPONENTS})


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
