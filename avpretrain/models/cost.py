"""What one clip costs: floating-point operations, visible tokens and activation memory, from the config alone.

Nothing here imports torch. Counted are matrix products (2 m n k each), as `torch.utils.flop_counter.FlopCounterMode`
counts them; a test holds the two equal for every option of the model. The backward pass has two products for each one
of the forward pass, less the gradients of inputs that need none. What kernels compute twice (flash attention
recomputes its scores) is not counted, so that a number means the same on every machine.

L tokens, D width, N queries, C context tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from avpretrain.config import DecoderConfig, ModelConfig
from avpretrain.schedules import Cost, kept

COMPONENTS = (
    "patch_embed",
    "audio_encoder",
    "video_encoder",
    "fusion",
    "audio_decoder",
    "video_decoder",
    "contrastive",
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


@dataclass(frozen=True, slots=True)
class Side:
    """One modality's sizes at one masking ratio."""

    patches: int
    visible: int
    decoded: int
    """Hidden patches that the decoder predicts."""
    patch_values: int
    prefix: int
    """1 with a class token, else 0."""

    @property
    def tokens(self) -> int:
        """What the encoder sees."""
        return self.visible + self.prefix


def _decoded(hidden: int, ratio: float) -> int:
    return hidden if ratio == 1 else max(1, round(hidden * ratio))


def side(cfg: ModelConfig, name: str, ratio: float) -> Side:
    """Sizes of `name` ("audio" or "video") when a share of `ratio` of its patches is hidden."""
    if name == "audio":
        grid: tuple[int, ...] = cfg.audio_grid
        values, decoder = cfg.audio.patch[0] * cfg.audio.patch[1], cfg.audio.decoder
    else:
        grid = cfg.video_grid
        values, decoder = 3 * cfg.video.patch[0] * cfg.video.patch[1] * cfg.video.patch[2], cfg.video.decoder
    patches = 1
    for length in grid:
        patches *= length
    visible = kept(patches, ratio)
    return Side(patches, visible, _decoded(patches - visible, decoder.decode_ratio), values, int(cfg.cls_token))


# --- FLOPs -----------------------------------------------------------------------------------------------------------


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
    total += _linear(sizes.decoded, cfg.width, sizes.patch_values)
    if cfg.input == "mask_token":
        return total
    total += _linear(sizes.decoded, sizes.patch_values, cfg.width, first=True)
    conditioning = model.diffusion.time_conditioning
    if conditioning != "none":
        total += _linear(1, TIMESTEP_SINUSOIDS, cfg.width, first=True) + _linear(1, cfg.width, cfg.width)
    if conditioning == "adaln":
        branches = 3 if cfg.kind == "cross_self" else 2
        windows = sizes.patches // (cfg.window[0] * cfg.window[1]) if cfg.window else 1
        total += _linear(windows, cfg.width, 3 * branches * cfg.width) * cfg.depth
    return total


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
    }
    return FlopCount({name: parts[name] for name in COMPONENTS})


# --- tokens and memory -----------------------------------------------------------------------------------------------


def visible_tokens(cfg: ModelConfig, audio_ratio: float, video_ratio: float) -> float:
    """Tokens that the encoders see of one view of one clip."""
    return float(side(cfg, "audio", audio_ratio).tokens + side(cfg, "video", video_ratio).tokens)


def _block_bytes(width: int, hidden: int) -> float:
    """Activations a token leaves for the backward pass of one block under bf16 autocast with a fused attention kernel.

    Residual stream and both norms' inputs in fp32; norms' outputs, queries, keys, values, attention's output and both
    hidden activations of the MLP in bf16.
    """
    return 4.0 * 2 * width + 2.0 * (6 * width + 2 * hidden)


def _decoder_bytes(cfg: DecoderConfig, sizes: Side, conditioning: str) -> float:
    adaln = 3 * 2 * 4.0 * cfg.width if cfg.input == "diffused" and conditioning == "adaln" else 0.0
    token = _block_bytes(cfg.width, 4 * cfg.width) + adaln
    if cfg.kind == "joint":
        tokens = float(sizes.patches if cfg.window else sizes.tokens + sizes.decoded)
        return cfg.depth * tokens * token
    token += (4.0 * 1 + 2.0 * 5) * cfg.width if cfg.kind == "cross_self" else 0.0
    keys_values = 2.0 * 2 * cfg.width
    return cfg.depth * (sizes.decoded * token + sizes.tokens * keys_values)


def _input_bytes(cfg: ModelConfig, sizes: Side) -> float:
    """Clip and patches in fp32, visible patches in bf16, diffused patches (bf16), targets and errors (fp32)."""
    clip = 2 * 4.0 * sizes.patches
    return sizes.patch_values * (clip + 2.0 * cfg.views * sizes.visible + 10.0 * cfg.decode_views * sizes.decoded)


def activation_bytes(cfg: ModelConfig, audio_ratio: float, video_ratio: float) -> float:
    """Estimated bytes that one clip of a batch occupies in a training step (bf16 autocast): inputs and activations."""
    audio, video = side(cfg, "audio", audio_ratio), side(cfg, "video", video_ratio)
    token = _block_bytes(cfg.width, int(cfg.width * cfg.mlp_ratio))
    shared = cfg.fusion.bottleneck_tokens * 2 if cfg.fusion.kind == "bottleneck" else 0
    encoders = cfg.views * (audio.tokens * cfg.audio.depth + video.tokens * cfg.video.depth) * token
    fusion = cfg.decode_views * (audio.tokens + video.tokens + shared) * cfg.fusion.depth * token
    conditioning = cfg.diffusion.time_conditioning
    decoders = sum(
        _decoder_bytes(tower.decoder, sizes, conditioning) for tower, sizes in ((cfg.audio, audio), (cfg.video, video))
    )
    inputs = sum(_input_bytes(cfg, sizes) for sizes in (audio, video))
    return encoders + fusion + cfg.decode_views * decoders + inputs


def cost_of(cfg: ModelConfig, rule: str) -> Cost:
    """What an adaptive batch holds constant, as a function of the audio and video masking ratios.

    Args:
        rule: `schedule.batch.rule`. flops counts forward and backward without the contrast, which depends on the batch.
    """
    if rule == "visible_tokens":
        return lru_cache(lambda audio, video: visible_tokens(cfg, audio, video))
    if rule == "flops":
        return lru_cache(lambda audio, video: clip_flops(cfg, audio, video, batch_size=0).training)
    if rule == "memory":
        return lru_cache(lambda audio, video: activation_bytes(cfg, audio, video))
    return lambda audio, video: 1.0
