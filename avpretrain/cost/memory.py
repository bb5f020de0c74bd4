"""An estimate of what one clip occupies on the device in a training step, from the config alone."""

from __future__ import annotations

from avpretrain.config.model import DecoderConfig, ModelConfig
from avpretrain.cost.sizes import Side, side


def _block_bytes(width: int, hidden: int) -> float:
    """Activations a token leaves for the backward pass of one block under bf16 autocast with a fused attention kernel.

    The residual stream before both norms, their outputs, queries, keys, values, attention's output and both hidden
    activations of the MLP, all in bf16.
    """
    return 2.0 * (8 * width + 2 * hidden)


def _decoder_bytes(cfg: DecoderConfig, sizes: Side, conditioning: str) -> float:
    token = _block_bytes(cfg.width, 4 * cfg.width)
    if (
        cfg.input == "diffused" and conditioning == "adaln"
    ):  # each branch's input, in fp32 as norms leave it, and output
        token += (3 if cfg.kind == "cross_self" else 2) * (4.0 + 2.0) * cfg.width
    if cfg.kind == "joint":
        tokens = float(sizes.patches if cfg.window else sizes.tokens + sizes.decoded)
        return cfg.depth * tokens * token
    token += 2.0 * 6 * cfg.width if cfg.kind == "cross_self" else 0.0
    keys_values = 2.0 * 2 * cfg.width
    return cfg.depth * (sizes.decoded * token + sizes.tokens * keys_values)


def _input_bytes(cfg: ModelConfig, sizes: Side) -> float:
    """Clip and patches in fp32, visible patches in bf16, diffused patches (bf16), targets and errors (fp32)."""
    seen = sizes.patch_values * (2 * 4.0 * sizes.patches + 2.0 * cfg.views * sizes.visible)
    return seen + cfg.decode_views * sizes.decoded * (2.0 * sizes.noised_values + 8.0 * sizes.predicted_values)


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
