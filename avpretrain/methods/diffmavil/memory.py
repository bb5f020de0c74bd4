"""An estimate of what one clip occupies on the device in a training step, from the config alone.

A GPU measures its memory (`training/memory_probe.py`); this serves where there is none. Nothing here imports torch.
"""

from __future__ import annotations

from avpretrain.config.model import SIDES, DecoderConfig, Side
from avpretrain.config.scaling import LayerSizes
from avpretrain.config.schedules import kept
from avpretrain.methods.diffmavil.config import ModelConfig


def tokens(cfg: ModelConfig, side: Side, ratio: float) -> int:
    """What the encoder of one modality sees of one view, class token included."""
    return kept(cfg.tower(side).patches, ratio) + int(cfg.cls_token)


def _blocks_bytes(width: int, head_width: int, layers: LayerSizes) -> float:
    """Activations a token leaves for the backward pass of a stack, under bf16 autocast with a fused attention kernel.

    The residual stream before both norms, their outputs, queries, keys, values, attention's output and both hidden
    activations of the MLP, all in bf16.
    """
    return sum(
        2.0 * (4 * width + 4 * heads * head_width + 2 * hidden)
        for heads, hidden in zip(layers.heads, layers.hidden, strict=True)
    )


def _decoder_bytes(cfg: DecoderConfig, patches: int, seen: int, decoded: int, conditioning: str) -> float:
    token = _blocks_bytes(cfg.width, cfg.width // cfg.heads, cfg.sizes)
    if cfg.input == "diffused" and conditioning == "adaln":
        # each branch's input, in fp32 as norms leave it, and output
        token += cfg.depth * (3 if cfg.kind == "cross_self" else 2) * (4.0 + 2.0) * cfg.width
    if cfg.kind == "joint":
        return float(patches if cfg.window else seen + decoded) * token
    inner = sum(cfg.sizes.heads) * (cfg.width // cfg.heads)
    token += 2.0 * (2 * cfg.width * cfg.depth + 4 * inner) if cfg.kind == "cross_self" else 0.0
    return decoded * token + seen * 2.0 * 2 * inner  # keys and values of the context


def activation_bytes(cfg: ModelConfig, audio_ratio: float, video_ratio: float) -> float:
    """Estimated bytes that one clip of a batch occupies in a training step (bf16 autocast): inputs and activations."""
    total, head_width = 0.0, cfg.width // cfg.heads
    seen = {side: tokens(cfg, side, ratio) for side, ratio in zip(SIDES, (audio_ratio, video_ratio), strict=True)}
    for side in SIDES:
        spec, visible = cfg.tower(side), seen[side] - int(cfg.cls_token)
        decoded = spec.decoded(spec.patches - visible)
        total += cfg.views * seen[side] * _blocks_bytes(cfg.width, head_width, spec.layers)
        total += cfg.decode_views * _decoder_bytes(
            spec.decoder, spec.patches, seen[side], decoded, cfg.diffusion.time_conditioning
        )
        # clip and patches in fp32, visible patches in bf16, diffused patches (bf16), targets and errors (fp32)
        total += spec.patch_values * (2 * 4.0 * spec.patches + 2.0 * cfg.views * visible)
        total += cfg.decode_views * decoded * (2.0 * spec.noised_values + 8.0 * spec.predicted_values)
    shared = cfg.fusion.bottleneck_tokens * 2 if cfg.fusion.kind == "bottleneck" else 0
    fused = sum(seen.values()) + shared
    return total + cfg.decode_views * fused * _blocks_bytes(cfg.width, head_width, cfg.stack(cfg.fusion))
