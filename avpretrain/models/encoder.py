"""ViT encoder over visible patches, and the layers that fuse two modalities.

B clips, L patches, K visible patches, P values a patch, D width; token 0 is the class token where there is one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avpretrain.config import FusionConfig
from avpretrain.models.layers import NORM_EPS, Block
from avpretrain.models.masking import gather_patches
from avpretrain.models.patches import Grid, positions


class Encoder(nn.Module):
    """Vision Transformer that sees only the patches it is given (MAE, section 3).

    Args:
        patch_values: P, values in one patch.
        grid: patches along each axis that the model is trained on.
    """

    def __init__(
        self, patch_values: int, grid: Grid, width: int, depth: int, heads: int, mlp_ratio: float, cls_token: bool
    ) -> None:
        super().__init__()
        self.grid, self.width = grid, width
        self.patch_embed = nn.Linear(patch_values, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if cls_token else None
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: 1 with a class token, else 0."""
        return 0 if self.cls_token is None else 1

    def forward(
        self,
        patches_BLP: Float[Tensor, "b l p"],
        ids_keep_BK: Tensor | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b k d"]:
        """Tokens [B, prefix + K, D] of the patches named by `ids_keep_BK`, or of all.

        Args:
            grid: the grid of `patches_BLP` where it differs from the trained one.
        """
        tokens_BKD = self.embed(patches_BLP, ids_keep_BK, grid)
        for block in self.blocks:
            tokens_BKD = block(tokens_BKD)
        return self.norm(tokens_BKD)

    def embed(self, patches_BLP: Tensor, ids_keep_BK: Tensor | None = None, grid: Grid | None = None) -> Tensor:
        """What enters the first block; hidden patches are dropped before anything is computed of them."""
        position_LD = positions(grid or self.grid, self.width, self.grid).to(patches_BLP.device)
        if ids_keep_BK is None:
            tokens_BKD = self.patch_embed(patches_BLP) + position_LD
        else:
            tokens_BKD = self.patch_embed(gather_patches(patches_BLP, ids_keep_BK)) + position_LD[ids_keep_BK]
        if self.cls_token is None:
            return tokens_BKD
        cls_B1D = self.cls_token.expand(len(tokens_BKD), -1, -1)
        return torch.cat([cls_B1D.to(tokens_BKD.dtype), tokens_BKD], dim=1)

    def pool(self, tokens_BKD: Float[Tensor, "b k d"]) -> Float[Tensor, "b d"]:
        """Mean over patches, class token left out (MAViL)."""
        return tokens_BKD[:, self.prefix :].mean(dim=1)


class Fusion(nn.Module):
    """Blocks in which each modality sees the other.

    `joint` runs plain blocks over both token sequences; `bottleneck` gives each modality its own blocks, which exchange only
    through a few shared tokens, averaged after every layer (Nagrani et al. 2021, section 3.2.3).
    """

    def __init__(self, cfg: FusionConfig, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(cfg.depth))
        self.bottleneck = None
        if cfg.kind == "bottleneck":
            self.video_blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(cfg.depth))
            self.bottleneck = nn.Parameter(torch.zeros(1, cfg.bottleneck_tokens, width))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(
        self, audio_BKD: Float[Tensor, "b ka d"], video_BKD: Float[Tensor, "b kv d"]
    ) -> tuple[Float[Tensor, "b ka d"], Float[Tensor, "b kv d"]]:
        """Contextualised tokens of both modalities, shapes unchanged."""
        lengths = [audio_BKD.shape[1], video_BKD.shape[1]]
        if self.bottleneck is None:
            tokens_BLD = torch.cat([audio_BKD, video_BKD], dim=1)
            for block in self.blocks:
                tokens_BLD = block(tokens_BLD)
            audio_BKD, video_BKD = self.norm(tokens_BLD).split(lengths, dim=1)
            return audio_BKD, video_BKD
        shared_BSD = self.bottleneck.expand(len(audio_BKD), -1, -1).to(audio_BKD.dtype)
        for audio_block, video_block in zip(self.blocks, self.video_blocks, strict=True):
            audio_out = audio_block(torch.cat([audio_BKD, shared_BSD], dim=1))
            video_out = video_block(torch.cat([video_BKD, shared_BSD], dim=1))
            audio_BKD, video_BKD = audio_out[:, : lengths[0]], video_out[:, : lengths[1]]
            shared_BSD = (audio_out[:, lengths[0] :] + video_out[:, lengths[1] :]) / 2
        return self.norm(audio_BKD), self.norm(video_BKD)
