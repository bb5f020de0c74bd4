"""Decoders: from visible tokens and what stands at the hidden patches to a prediction for each hidden patch.

B clips, C visible (context) tokens, N hidden patches, P values a patch, D width of the decoder, E width of the encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from avpretrain.config import DecoderConfig
from avpretrain.models.layers import NORM_EPS, Attention, CrossAttention, Mlp, TimestepEmbedding
from avpretrain.models.patches import Grid, positions


class DecoderBlock(nn.Module):
    """One decoder layer; which attentions it holds is the decoder's kind (DiffMAE, section 3.2).

    joint: self-attention over [visible, hidden]. cross: hidden tokens attend to visible ones. cross_self: both in turn.
    With a timestep vector each branch is scaled, shifted and gated by it (adaLN-Zero, Peebles & Xie 2023).
    """

    def __init__(self, cfg: DecoderConfig, adaln: bool) -> None:
        super().__init__()
        d = cfg.width
        branches = {"joint": 2, "cross": 2, "cross_self": 3}[cfg.kind]
        affine = not adaln
        self.cross_attn = CrossAttention(d, cfg.heads) if cfg.kind != "joint" else None
        self.attn = Attention(d, cfg.heads) if cfg.kind != "cross" else None
        self.mlp = Mlp(d, 4 * d)
        self.norms = nn.ModuleList(nn.LayerNorm(d, NORM_EPS, elementwise_affine=affine) for _ in range(branches))
        self.modulation = nn.Linear(d, 3 * branches * d) if adaln else None

    def forward(
        self, x_BND: Float[Tensor, "b n d"], context_BCD: Float[Tensor, "b c d"], time_BD: Tensor | None
    ) -> Float[Tensor, "b n d"]:
        branches = []
        if self.cross_attn is not None:
            branches.append(lambda y_BND: self.cross_attn(y_BND, context_BCD))
        if self.attn is not None:
            branches.append(self.attn)
        branches.append(self.mlp)
        if self.modulation is None or time_BD is None:
            for norm, branch in zip(self.norms, branches, strict=True):
                x_BND = x_BND + branch(norm(x_BND))
            return x_BND
        parts = rearrange(self.modulation(F.silu(time_BD)), "b (k s d) -> k s b 1 d", k=len(branches), s=3)
        for norm, branch, (shift, scale, gate) in zip(self.norms, branches, parts, strict=True):
            x_BND = x_BND + gate * branch(norm(x_BND) * (1 + scale) + shift)
        return x_BND


class Decoder(nn.Module):
    """Predicts the hidden patches of one modality.

    Args:
        patch_values: P, values in one patch.
        encoder_width: E.
        grid: patches along each axis that the model is trained on.
        time_conditioning: how the timestep enters: none, added to the hidden tokens, or adaln; unused by mask tokens.
    """

    def __init__(
        self, cfg: DecoderConfig, patch_values: int, encoder_width: int, grid: Grid, time_conditioning: str
    ) -> None:
        super().__init__()
        self.cfg, self.grid = cfg, grid
        diffused = cfg.input == "diffused"
        adaln = diffused and time_conditioning == "adaln"
        self.context_embed = nn.Linear(encoder_width, cfg.width)
        self.patch_embed = nn.Linear(patch_values, cfg.width) if diffused else None
        self.mask_token = None if diffused else nn.Parameter(torch.zeros(1, 1, cfg.width))
        self.time_embed = TimestepEmbedding(cfg.width) if diffused and time_conditioning != "none" else None
        self.adaln = adaln
        self.blocks = nn.ModuleList(DecoderBlock(cfg, adaln) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=NORM_EPS)
        self.head = nn.Linear(cfg.width, patch_values)

    def forward(
        self,
        context_BCE: Float[Tensor, "b c e"],
        ids_keep_BK: Tensor,
        ids_hidden_BN: Tensor,
        noisy_BNP: Float[Tensor, "b n p"] | None = None,
        timestep_B: Tensor | None = None,
    ) -> Float[Tensor, "b n p"]:
        """Prediction for each patch of `ids_hidden_BN`.

        Args:
            context_BCE: visible tokens, any class token first.
            ids_keep_BK: places of the visible patches (without the class token).
            noisy_BNP, timestep_B: the diffused patches and their timesteps; needed when the input is 'diffused'.
        """
        position_LD = positions(self.grid, self.cfg.width, self.grid).to(context_BCE.device)
        context_BCD = self._context(context_BCE, position_LD[ids_keep_BK])
        x_BND, time_BD = self._hidden(position_LD[ids_hidden_BN], noisy_BNP, timestep_B)
        if self.cfg.kind == "joint":
            x_BND = self._joint(context_BCD, x_BND, ids_keep_BK, ids_hidden_BN, time_BD)
        else:
            for block in self.blocks:
                x_BND = block(x_BND, context_BCD, time_BD)
        return self.head(self.norm(x_BND))

    def _context(self, context_BCE: Tensor, position_BKD: Tensor) -> Tensor:
        context_BCD = self.context_embed(context_BCE)
        prefix = context_BCE.shape[1] - position_BKD.shape[1]
        return context_BCD + F.pad(position_BKD, (0, 0, prefix, 0))

    def _hidden(
        self, position_BND: Tensor, noisy_BNP: Tensor | None, timestep_B: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens at the hidden places, and the timestep vector where blocks want it."""
        if self.patch_embed is None:
            return self.mask_token + position_BND, None
        x_BND = self.patch_embed(noisy_BNP) + position_BND
        if self.time_embed is None:
            return x_BND, None
        time_BD = self.time_embed(timestep_B)
        return (x_BND, time_BD) if self.adaln else (x_BND + time_BD[:, None], None)

    def _joint(
        self, context_BCD: Tensor, x_BND: Tensor, ids_keep_BK: Tensor, ids_hidden_BN: Tensor, time_BD: Tensor | None
    ) -> Tensor:
        """Self-attention over visible and hidden tokens; their order does not matter, unless attention is windowed."""
        tokens_BLD = torch.cat([context_BCD, x_BND], dim=1)
        if self.cfg.window:
            return self._windowed(tokens_BLD, ids_keep_BK, ids_hidden_BN, time_BD)
        for block in self.blocks:
            tokens_BLD = block(tokens_BLD, context_BCD, time_BD)
        return tokens_BLD[:, context_BCD.shape[1] :]

    def _windowed(
        self, tokens_BLD: Tensor, ids_keep_BK: Tensor, ids_hidden_BN: Tensor, time_BD: Tensor | None
    ) -> Tensor:
        """Attention within windows of the patch grid, shifted by half a window in every second block (AudioMAE, section 3.1)."""
        batch, prefix = len(tokens_BLD), tokens_BLD.shape[1] - ids_keep_BK.shape[1] - ids_hidden_BN.shape[1]
        restore_BL = torch.cat([ids_keep_BK, ids_hidden_BN], dim=1).argsort(dim=1)
        grid_BLD = tokens_BLD[:, prefix:].gather(1, restore_BL[:, :, None].expand(-1, -1, tokens_BLD.shape[2]))
        (h, w), (p, q) = self.grid, self.cfg.window
        x_BHWD = rearrange(grid_BLD, "b (h w) d -> b h w d", h=h)
        for i, block in enumerate(self.blocks):
            shift = (p // 2, q // 2) if i % 2 else (0, 0)
            x_BHWD = x_BHWD.roll((-shift[0], -shift[1]), dims=(1, 2))
            windows = rearrange(x_BHWD, "b (h p) (w q) d -> (b h w) (p q) d", p=p, q=q)
            time = None if time_BD is None else time_BD.repeat_interleave(len(windows) // batch, dim=0)
            windows = block(windows, windows, time)
            x_BHWD = rearrange(windows, "(b h w) (p q) d -> b (h p) (w q) d", b=batch, h=h // p, p=p)
            x_BHWD = x_BHWD.roll(shift, dims=(1, 2))
        return x_BHWD.flatten(1, 2).gather(1, ids_hidden_BN[:, :, None].expand(-1, -1, x_BHWD.shape[-1]))
