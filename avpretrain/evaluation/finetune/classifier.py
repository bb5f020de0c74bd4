"""A pretrained encoder with a classification head; layer decay, drop path and patch masking for its training.

B clips, L patches, K visible patches, P values a patch, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avpretrain.core import draws
from avpretrain.data.batch import AVBatch
from avpretrain.evaluation.finetune.recipes import FinetuneConfig
from avpretrain.evaluation.frozen import sides_of
from avpretrain.evaluation.settings import Side
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.nn.encoder import Encoder
from avpretrain.nn.layers import NORM_EPS, Block, CrossAttention
from avpretrain.nn.masking import gather_patches


class AttentivePool(nn.Module):
    """One learned query that attends to all tokens (attentive probing)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = CrossAttention(width, heads)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """[B, D]."""
        return self.attn(self.query.expand(len(tokens_BLD), -1, -1), self.norm(tokens_BLD))[:, 0]


class Classifier(nn.Module):
    """Encoders, with both modalities also fusion layers, a pool for each modality, then LayerNorm and Linear (MAViL).

    Args:
        model: its decoders are dropped.
    """

    def __init__(self, model: DiffMAViL, classes: int, cfg: FinetuneConfig) -> None:
        super().__init__()
        self.config, self.cfg = model.cfg, cfg
        self.sides = sides = sides_of(cfg.modality)
        encoders: dict[str, Encoder] = {side: model.tower(side).encoder for side in sides}
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = model.fusion if len(sides) == 2 else None
        width = model.cfg.width
        attentive = cfg.head == "attentive"
        self.pools = nn.ModuleDict({s: AttentivePool(width, model.cfg.heads) for s in sides} if attentive else {})
        self.norm = nn.LayerNorm(width * len(sides), eps=NORM_EPS)
        self.head = nn.Linear(width * len(sides), classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)  # MAE: the head starts by saying nothing
        nn.init.zeros_(self.head.bias)
        if cfg.freeze:
            for module in (self.encoders, self.fusion):
                if module is not None:
                    module.requires_grad_(False)
        for side in sides:
            add_drop_path(encoders[side], cfg.drop_path)

    def forward(self, batch: AVBatch) -> Tensor:
        """Logits [B, C]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cfg.freeze):
            tokens = {side: self._encode(side, batch) for side in self.sides}
            if self.fusion is not None:
                fused = self.fusion(tokens["audio"], tokens["video"])
                tokens = dict(zip(("audio", "video"), fused, strict=True))
        return self.head(self.norm(torch.cat([self._pool(side, x_BLD) for side, x_BLD in tokens.items()], dim=1)))

    def _encode(self, side: Side, batch: AVBatch) -> Tensor:
        encoder, x = self.encoder(side), batch.clips[side]
        masked = self.training and (self.cfg.mask_time or self.cfg.mask_frequency)
        if side == "video" or not masked:
            return encoder.encode(x)
        times, bands = grid = encoder.patches.grid_of(x)
        ids_BK = visible_patches(batch.seed_B, (times, bands), self.cfg.mask_time, self.cfg.mask_frequency)
        return encoder(gather_patches(encoder.patches.split(x), ids_BK), ids_BK, grid)

    def _pool(self, side: str, tokens_BLD: Tensor) -> Tensor:
        if self.cfg.head == "attentive":
            return self.pools[side](tokens_BLD)
        return self.encoder(side).pool(tokens_BLD)

    def encoder(self, side: str) -> Encoder:
        """The encoder of one modality."""
        encoder = self.encoders[side]
        assert isinstance(encoder, Encoder)
        return encoder


def visible_patches(seed_B: Tensor, grid: tuple[int, int], time: float, frequency: float) -> Tensor:
    """Places [B, K] of the patches left when whole columns and whole rows are hidden (AudioMAE)."""
    kept = []
    for axis, (size, share) in enumerate(zip(grid, (time, frequency), strict=True)):
        count = max(1, round(size * (1 - share)))
        order_BN = draws.uniform(seed_B, f"finetune_mask_{axis}", (size,)).argsort(dim=1, stable=True)
        kept.append(order_BN[:, :count].sort(dim=1).values)
    return (kept[0][:, :, None] * grid[1] + kept[1][:, None, :]).flatten(1)


def add_drop_path(encoder: Encoder, rate: float) -> None:
    """Skips branches at random in training, clip by clip, with a chance that rises from 0 to `rate` over the blocks."""
    blocks = [block for block in encoder.blocks if isinstance(block, Block)]
    for i, block in enumerate(blocks):
        chance = rate * i / max(1, len(blocks) - 1)
        if chance > 0:
            for branch in (block.attn, block.mlp):
                branch.register_forward_hook(_DropPath(chance))


class _DropPath:
    """Forward hook: zeroes a branch's output for some clips, and scales up the others."""

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def __call__(self, module: nn.Module, _inputs: Any, out_BLD: Tensor) -> Tensor:
        if not module.training:
            return out_BLD
        keep_B11 = (torch.rand(len(out_BLD), 1, 1, device=out_BLD.device) >= self.chance).to(out_BLD.dtype)
        return out_BLD * keep_B11 / (1 - self.chance)


def parameter_groups(classifier: Classifier, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW with their share of the learning rate as `scale`.

    The head, the pools and the fusion layers learn at the full rate, the last block at `layer_decay` of it, and so down
    to the patch embedding. Biases, norms and single tokens are not decayed.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or name.endswith(("token", "query", "bottleneck", "table")) else weight_decay
        groups.setdefault((_scale(name, classifier, layer_decay), decay), []).append(parameter)
    return [{"params": p, "scale": scale, "weight_decay": decay} for (scale, decay), p in groups.items()]


def _scale(name: str, classifier: Classifier, layer_decay: float) -> float:
    parts = name.split(".")
    if parts[0] != "encoders" or parts[2] == "norm":
        return 1.0
    depth = len(classifier.encoder(parts[1]).blocks)
    below = depth - int(parts[3]) if parts[2] == "blocks" else depth + 1
    return layer_decay**below
