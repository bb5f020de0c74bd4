"""Decoders: from visible tokens and what stands at the hidden patches to a prediction for each hidden patch.

B clips, C visible (context) tokens, K visible patches, N hidden patches, L = K + N, P values that stand at a hidden
patch, Q values predicted of it, D width of the decoder, E width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from avpretrain.config.model import DecoderConfig
from avpretrain.nn.layers import NORM_EPS, Attention, CrossAttention, Mlp, TimestepEmbedding
from avpretrain.nn.masking import gather_patches
from avpretrain.nn.patches import Grid, positions

__all__ = ["Decoder", "DecoderBlock"]


class DecoderBlock(nn.Module):
    """One decoder layer; which attentions it holds is the decoder's kind (DiffMAE, section 3.2).

    joint: self-attention over [visible, hidden]. cross: hidden tokens attend to visible ones. cross_self: both in turn.
    With a timestep vector each branch is scaled, shifted and gated by it (adaLN-Zero, Peebles & Xie 2023).

    Args:
        layer: which of the decoder's, from 0.
    """

    def __init__(self, cfg: DecoderConfig, adaln: bool, layer: int = 0) -> None:
        super().__init__()
        d, heads, head_width = cfg.width, cfg.sizes.heads[layer], cfg.width // cfg.heads
        branches = 3 if cfg.kind == "cross_self" else 2
        self.cross_attn = CrossAttention(d, heads, head_width) if cfg.kind != "joint" else None
        self.attn = Attention(d, heads, head_width) if cfg.kind != "cross" else None
        self.mlp = Mlp(d, cfg.sizes.hidden[layer])
        self.norms = nn.ModuleList(nn.LayerNorm(d, NORM_EPS, elementwise_affine=not adaln) for _ in range(branches))
        self.modulation = nn.Linear(d, 3 * branches * d) if adaln else None

    def forward(
        self,
        x_BND: Float[Tensor, "b n d"],
        context_BCD: Float[Tensor, "b c d"],
        time_BD: Float[Tensor, "b d"] | None,
        allowed_B1NN: Bool[Tensor, "b 1 n n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """One layer.

        Args:
            time_BD: the timestep, when blocks are modulated by it.
            allowed_B1NN: restricts self-attention; none = all to all.
        """
        branches: list[Callable[[Tensor], Tensor]] = []
        if self.cross_attn is not None:
            branches.append(partial(self.cross_attn, context_BCD=context_BCD))
        if self.attn is not None:
            branches.append(partial(self.attn, allowed_B1LL=allowed_B1NN))
        branches.append(self.mlp)
        if self.modulation is None:
            for norm, branch in zip(self.norms, branches, strict=True):
                x_BND = x_BND + branch(norm(x_BND))
            return x_BND
        assert time_BD is not None, "adaLN blocks need a timestep"
        parts = rearrange(self.modulation(F.silu(time_BD)), "b (k s d) -> k s b 1 d", k=len(branches), s=3)
        for norm, branch, (shift, scale, gate) in zip(self.norms, branches, parts, strict=True):
            x_BND = x_BND + gate * branch(norm(x_BND) * (1 + scale) + shift)
        return x_BND


class Decoder(nn.Module):
    """Predicts the hidden patches of one modality.

    Args:
        input_values: P, values of what stands at a hidden patch when it is diffused.
        output_values: Q, values predicted of each hidden patch.
        encoder_width: E.
        grid: patches along each axis that the model is trained on.
        time_conditioning: how the timestep enters: none, added to the hidden tokens, or adaln; unused by mask tokens.
    """

    position_LD: Tensor

    def __init__(
        self,
        cfg: DecoderConfig,
        input_values: int,
        output_values: int,
        encoder_width: int,
        grid: Grid,
        time_conditioning: str,
    ) -> None:
        super().__init__()
        self.cfg, self.grid = cfg, grid
        diffused = cfg.input == "diffused"
        self.adaln = diffused and time_conditioning == "adaln"
        self.context_embed = nn.Linear(encoder_width, cfg.width)
        self.patch_embed = nn.Linear(input_values, cfg.width) if diffused else None
        self.mask_token = None if diffused else nn.Parameter(torch.zeros(1, 1, cfg.width))
        self.time_embed = TimestepEmbedding(cfg.width) if diffused and time_conditioning != "none" else None
        self.register_buffer("position_LD", positions(grid, cfg.width, grid).clone(), persistent=False)
        self.blocks = nn.ModuleList(DecoderBlock(cfg, self.adaln, layer) for layer in range(cfg.depth))
        self.level_embeds = nn.ModuleDict(
            {
                str(level): nn.Sequential(nn.LayerNorm(encoder_width, NORM_EPS), nn.Linear(encoder_width, cfg.width))
                for level in sorted(set(cfg.levels) - {0})
            }
        )
        self.norm = nn.LayerNorm(cfg.width, eps=NORM_EPS)
        self.head = nn.Linear(cfg.width, output_values)

    def forward(
        self,
        context_BCE: Float[Tensor, "b c e"],
        ids_keep_BK: Int[Tensor, "b k"],
        ids_hidden_BN: Int[Tensor, "b n"],
        noisy_BNP: Float[Tensor, "b n p"] | None = None,
        timestep_B: Int[Tensor, b * x] | None = None,
        levels: Mapping[int, Tensor] | None = None,
    ) -> Float[Tensor, "b n q"]:
        """Prediction for each patch of `ids_hidden_BN`.

        Args:
            context_BCE: visible tokens, any class token first.
            ids_keep_BK: places of the visible patches (without the class token).
            noisy_BNP: the diffused patches, as they are embedded; needed when the input is 'diffused'.
            timestep_B: their timesteps, [B] or [B, N].
            levels: encoder block -> its tokens, [B, C, E], of the blocks that the config's `levels` name.
        """
        prefix = context_BCE.shape[1] - ids_keep_BK.shape[1]
        context_BCD = self.context_embed(context_BCE)
        position_LD = self.position_LD.to(context_BCD.dtype)  # as in the encoder: sums stay in the tokens' precision
        visible_BCD = F.pad(position_LD[ids_keep_BK], (0, 0, prefix, 0))  # none at the class token
        context_BCD = context_BCD + visible_BCD
        x_BND, time_BD = self._hidden(position_LD[ids_hidden_BN], noisy_BNP, timestep_B)
        if self.cfg.window:
            patches_BKD = context_BCD[:, prefix:]
            x_BND = self._windowed(patches_BKD, x_BND, ids_keep_BK, ids_hidden_BN, time_BD)
        elif self.cfg.kind == "joint":
            tokens_BLD = torch.cat([context_BCD, x_BND], dim=1)  # attention minds no order
            for block in self.blocks:
                tokens_BLD = block(tokens_BLD, context_BCD, time_BD)
            x_BND = tokens_BLD[:, context_BCD.shape[1] :]
        else:
            contexts = {0: context_BCD}
            for name, embed in self.level_embeds.items():
                assert levels is not None, "a decoder with levels needs the encoder's tokens"
                contexts[int(name)] = embed(levels[int(name)]) + visible_BCD
            for block, level in zip(self.blocks, self.cfg.levels or [0] * len(self.blocks), strict=True):
                x_BND = block(x_BND, contexts[level], time_BD)
        return self.head(self.norm(x_BND))

    def _hidden(
        self, position_BND: Tensor, noisy_BNP: Tensor | None, timestep_B: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens at the hidden places, and the timestep vector where blocks want it."""
        if self.mask_token is not None:
            return self.mask_token.to(position_BND.dtype) + position_BND, None
        assert self.patch_embed is not None
        assert noisy_BNP is not None and timestep_B is not None, (
            "a decoder of diffused patches needs them and a timestep"
        )
        x_BND = self.patch_embed(noisy_BNP) + position_BND
        if self.time_embed is None:
            return x_BND, None
        time_BD = self.time_embed(timestep_B)
        if self.adaln:
            return x_BND, time_BD
        return x_BND + (time_BD if time_BD.ndim == 3 else time_BD[:, None]), None

    def _windowed(
        self, kept_BKD: Tensor, hidden_BND: Tensor, ids_keep_BK: Tensor, ids_hidden_BN: Tensor, time_BD: Tensor | None
    ) -> Tensor:
        """Attention within windows of the patch grid, shifted by half a window in every second block (AudioMAE, section
        3.1; Swin's masks keep apart what only the shift brings together). The class token takes no part.
        """
        batch, (h, w), (p, q) = len(kept_BKD), self.grid, self.cfg.window
        restore_BL = torch.cat([ids_keep_BK, ids_hidden_BN], dim=1).argsort(dim=1)
        grid_BLD = gather_patches(torch.cat([kept_BKD, hidden_BND], dim=1), restore_BL)
        x_BHWD = rearrange(grid_BLD, "b (h w) d -> b h w d", h=h)
        shift = (p // 2 if p < h else 0, q // 2 if q < w else 0)
        allowed_B1PP = repeat(self._same_side(shift), "n i j -> (b n) 1 i j", b=batch)
        time_BD = None if time_BD is None else time_BD.repeat_interleave(h * w // (p * q), dim=0)
        for i, block in enumerate(self.blocks):
            if i % 2:
                x_BHWD = x_BHWD.roll((-shift[0], -shift[1]), dims=(1, 2))
            windows_BPD = rearrange(x_BHWD, "b (h p) (w q) d -> (b h w) (p q) d", p=p, q=q)
            windows_BPD = block(windows_BPD, windows_BPD, time_BD, allowed_B1PP if i % 2 else None)
            x_BHWD = rearrange(windows_BPD, "(b h w) (p q) d -> b (h p) (w q) d", b=batch, h=h // p, p=p)
            if i % 2:
                x_BHWD = x_BHWD.roll(shift, dims=(1, 2))
        return gather_patches(x_BHWD.flatten(1, 2), ids_hidden_BN)

    def _same_side(self, shift: tuple[int, int]) -> Bool[Tensor, "n p p"]:
        """For each window of the shifted grid, which pairs of its patches lie on the same side of the grid's seam."""
        (h, w), (p, q) = self.grid, self.cfg.window
        device = self.position_LD.device
        over_H = torch.arange(h, device=device) >= h - shift[0]  # rolled over the edge
        over_W = torch.arange(w, device=device) >= w - shift[1]
        side_HW = over_H[:, None] * 2 + over_W[None, :] * 1
        side_NP = rearrange(side_HW, "(h p) (w q) -> (h w) (p q)", p=p, q=q)
        return side_NP[:, :, None] == side_NP[:, None, :]
