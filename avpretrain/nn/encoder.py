"""ViT encoder over visible patches, and the layers that fuse two modalities.

B clips, L patches, K visible patches, C = K + prefix tokens, P values a patch, D width; token 0 is the class token
where there is one (prefix 1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from avpretrain.config.model import FusionConfig
from avpretrain.config.scaling import LayerSizes
from avpretrain.nn.layers import NORM_EPS, make_stack
from avpretrain.nn.patches import Grid, Patches, positions, resize_positions

__all__ = ["Encoder", "Fusion"]


class Encoder(nn.Module):
    """Vision Transformer that sees only the patches it is given (MAE, section 3).

    Args:
        patches: how clips are cut, and the grid of patches that the model is trained on.
        width: of a token.
        layers: heads and MLP width of each block.
        head_width: of one head.
        learned_positions: train a table of positions instead of the fixed sin-cos ones (imported ViTs).
        final_norm: end in a norm.
    """

    position_LD: Tensor

    def __init__(
        self,
        patches: Patches,
        *,
        width: int,
        layers: LayerSizes,
        head_width: int,
        cls_token: bool = True,
        learned_positions: bool = False,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.patches, self.grid, self.width = patches, patches.grid, width
        grid = patches.grid
        self.patch_embed = nn.Linear(patches.values, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if cls_token else None
        self.position_table = nn.Parameter(positions(grid, width, grid)[None].clone()) if learned_positions else None
        self.register_buffer("position_LD", positions(grid, width, grid).clone(), persistent=False)
        self.blocks = make_stack(width, layers, head_width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if final_norm else nn.Identity()

    @property
    def prefix(self) -> int:
        """Tokens before the patches: 1 with a class token, else 0."""
        return 0 if self.cls_token is None else 1

    def forward(
        self,
        patches_BKP: Float[Tensor, "b k p"],
        ids_BK: Int[Tensor, "b k"] | None = None,
        grid: Grid | None = None,
        levels: dict[int, Tensor] | None = None,
    ) -> Float[Tensor, "b c d"]:
        """Tokens [B, prefix + K, D] of the given patches.

        Args:
            patches_BKP: the visible patches alone; hidden ones never enter.
            ids_BK: their places in the grid; none = the whole grid in order.
            grid: the grid they come from where it differs from the trained one.
            levels: filled with the tokens after each block, counted from 1, before any norm.
        """
        tokens_BKD = self.patch_embed(patches_BKP)
        # In the tokens' precision: under bf16 a float32 position would make every later sum, and its traffic, float32.
        return self.transform(tokens_BKD + self._positions(ids_BK, grid or self.grid).to(tokens_BKD.dtype), levels)

    def transform(self, tokens_BKD: Tensor, levels: dict[int, Tensor] | None = None) -> Float[Tensor, "b c d"]:
        """Class token, blocks and norm over patches that are embedded and know their positions.

        Args:
            levels: see `forward`.
        """
        if self.cls_token is not None:
            cls_B1D = self.cls_token.expand(tokens_BKD.shape[0], -1, -1)  # torch.export freezes what len() says
            tokens_BKD = torch.cat([cls_B1D.to(tokens_BKD.dtype), tokens_BKD], dim=1)
        for level, block in enumerate(self.blocks, start=1):
            tokens_BKD = block(tokens_BKD)
            if levels is not None:
                levels[level] = tokens_BKD
        return self.norm(tokens_BKD)

    def encode(self, x: Tensor, levels: dict[int, Tensor] | None = None) -> Float[Tensor, "b c d"]:
        """Tokens [B, prefix + L, D] of whole clips, of any size that is a multiple of the patch.

        Args:
            x: what the encoder's modality has as a clip; see `Patches.split`.
            levels: see `forward`.

        Raises:
            ValueError: the shape or type is another; see `Patches.require`.
        """
        self.patches.require(x)
        return self(self.patches.split(x), grid=self.patches.grid_of(x), levels=levels)

    def _positions(self, ids_BK: Tensor | None, grid: Grid) -> Tensor:
        """[B, K, D] of the places named, or [L, D] of the whole grid."""
        if self.position_table is not None:
            position_LD = resize_positions(self.position_table[0], self.grid, grid)
        elif grid == self.grid:
            position_LD = self.position_LD
        else:
            position_LD = positions(grid, self.width, self.grid).to(self.position_LD)
        return position_LD if ids_BK is None else position_LD[ids_BK]

    def pool(self, tokens_BCD: Float[Tensor, "b c d"]) -> Float[Tensor, "b d"]:
        """Mean over patches, class token left out (MAViL)."""
        return tokens_BCD[:, self.prefix :].mean(dim=1)


class Fusion(nn.Module):
    """Blocks in which each modality sees the other.

    `joint` runs plain blocks over both token sequences; `bottleneck` gives each modality its own blocks, which exchange
    only through a few shared tokens, averaged after every layer (Nagrani et al. 2021, section 3.2.3).

    Args:
        layers: heads and MLP width of each block.
    """

    def __init__(self, cfg: FusionConfig, width: int, layers: LayerSizes, head_width: int) -> None:
        super().__init__()
        self.blocks = make_stack(width, layers, head_width)
        bottleneck = cfg.kind == "bottleneck"
        self.video_blocks = make_stack(width, layers, head_width) if bottleneck else nn.ModuleList()
        self.bottleneck = nn.Parameter(torch.zeros(1, cfg.bottleneck_tokens, width)) if bottleneck else None
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if cfg.norm else nn.Identity()

    def forward(
        self, audio_BKD: Float[Tensor, "b ka d"], video_BKD: Float[Tensor, "b kv d"]
    ) -> tuple[Float[Tensor, "b ka d"], Float[Tensor, "b kv d"]]:
        """Contextualised tokens of both modalities, shapes unchanged."""
        lengths = [audio_BKD.shape[1], video_BKD.shape[1]]
        if self.bottleneck is None:
            tokens_BLD = torch.cat([audio_BKD, video_BKD], dim=1)  # [B, Ka + Kv, D]
            for block in self.blocks:
                tokens_BLD = block(tokens_BLD)
            audio_BKD, video_BKD = self.norm(tokens_BLD).split(lengths, dim=1)
            return audio_BKD, video_BKD
        shared_BSD = self.bottleneck.expand(len(audio_BKD), -1, -1).to(audio_BKD.dtype)
        for audio_block, video_block in zip(self.blocks, self.video_blocks, strict=True):
            audio_BKD, from_audio_BSD = audio_block(torch.cat([audio_BKD, shared_BSD], 1)).tensor_split([lengths[0]], 1)
            video_BKD, from_video_BSD = video_block(torch.cat([video_BKD, shared_BSD], 1)).tensor_split([lengths[1]], 1)
            shared_BSD = (from_audio_BSD + from_video_BSD) / 2
        return self.norm(audio_BKD), self.norm(video_BKD)
