"""One modality's half of a masked autoencoder: its patches, encoder, noise and decoder.

Shapes: B clips, V views, L patches, K visible, N hidden, C = K + class token, P values a patch, Q values predicted of a
patch, X = 1 or N timesteps of a clip, D encoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avpretrain.config.model import TowerSpec
from avpretrain.core import draws
from avpretrain.nn.decoder import Decoder
from avpretrain.nn.diffusion import ForwardProcess
from avpretrain.nn.encoder import Encoder
from avpretrain.nn.losses import normalise_patches
from avpretrain.nn.masking import Mask, gather_patches, make_mask, random_part
from avpretrain.nn.patches import PATCHES
from avpretrain.nn.reconstruction import Denoised, MaskedView

__all__ = ["Tower"]


class Tower(nn.Module):
    """Masks, encodes and decodes the clips of one modality.

    Args:
        spec: see `ModelConfig.tower`.
    """

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.spec, self.side = spec, spec.side
        self.patches = PATCHES[spec.side](spec.patch, spec.grid)
        self.encoder = Encoder(
            self.patches,
            width=spec.width,
            layers=spec.layers,
            head_width=spec.head_width,
            cls_token=spec.cls_token,
            learned_positions=spec.learned_positions,
            final_norm=spec.final_norm,
        )
        self.decoder = Decoder(
            spec.decoder,
            input_values=spec.noised_values,
            output_values=spec.predicted_values,
            encoder_width=spec.width,
            grid=spec.grid,
            time_conditioning=spec.diffusion.time_conditioning,
        )
        self.process = ForwardProcess(spec.diffusion, spec.shift)

    def encode(self, x: Tensor, levels: dict[int, Tensor] | None = None) -> Tensor:
        """Tokens [B, prefix + L, D] of whole clips; see `Encoder.encode`."""
        return self.encoder.encode(x, levels)

    def masks(self, seed_B: Tensor, ratio: float, views: int) -> list[Mask]:
        """One mask for each view, drawn from the clips' seeds."""
        names = [f"{self.side}_mask_{view}" for view in range(views)]
        return [make_mask(self.spec.mask, seed_B, name, self.spec.grid, ratio) for name in names]

    def encode_views(self, patches_BLP: Tensor, masks: list[Mask]) -> tuple[Tensor, dict[int, Tensor]]:
        """Tokens of all views in one pass of the encoder, and those of blocks its decoder asks for: [V, B, C, D]."""
        visible = torch.cat([gather_patches(patches_BLP, mask.ids_keep_BK) for mask in masks])  # [V B, K, P]
        ids = torch.cat([mask.ids_keep_BK for mask in masks])
        wanted, views = sorted(set(self.spec.decoder.levels) - {0}), (len(masks), len(patches_BLP))
        levels: dict[int, Tensor] = {}
        tokens = self.encoder(visible, ids, levels=levels if wanted else None)  # [V B, C, D]
        return tokens.unflatten(0, views), {level: levels[level].unflatten(0, views) for level in wanted}

    def denoise(self, view: MaskedView, seed_B: Tensor, index: int, features_BLD: Tensor | None = None) -> Denoised:
        """Noises the hidden patches at a random timestep and lets the decoder predict them.

        Args:
            index: of the view; each draws its own timesteps and noise.
            features_BLD: a teacher's, where they are what is predicted.
        """
        stream = f"{self.side}_{index}"
        hidden_BN = random_part(view.mask.ids_hidden_BN, self.spec.decoder.decode_ratio, seed_B, f"{stream}_decoded")
        pixels_BNP = gather_patches(view.patches_BLP, hidden_BN)
        clean_BNQ = self._targets(pixels_BNP, hidden_BN, features_BLD)
        if self.spec.decoder.input == "mask_token":
            prediction_BNQ = self._decode(view, hidden_BN)
            return Denoised(prediction_BNQ, clean_BNQ, hidden_BN, torch.ones_like(seed_B, dtype=torch.float32))
        input_BNP, target_BNQ, timestep_BX = self._diffuse(pixels_BNP, clean_BNQ, seed_B, stream)
        prediction_BNQ = self._decode(view, hidden_BN, input_BNP, timestep_BX)
        return Denoised(prediction_BNQ, target_BNQ, hidden_BN, self.process.loss_weight(timestep_BX))

    def predict_clean(self, view: MaskedView, x_t_BNP: Tensor | None, timestep: int) -> Tensor:
        """[B, N, P]: every hidden patch as the decoder sees it clean, in the units of the target.

        Args:
            x_t_BNP: diffused patches at `timestep`; not read by decoders of mask tokens.
        """
        hidden_BN = view.mask.ids_hidden_BN
        if x_t_BNP is None or self.spec.decoder.input == "mask_token":
            return self._decode(view, hidden_BN)
        shape = hidden_BN.shape[: 1 if self.spec.diffusion.noise_level == "clip" else 2]
        timestep_BX = torch.full(shape, timestep, device=hidden_BN.device)
        output_BNP = self._decode(view, hidden_BN, self.process.scale_input(x_t_BNP, timestep_BX), timestep_BX)
        return self.process.clean(output_BNP.float(), x_t_BNP, timestep_BX)

    def compile_parts(self) -> None:
        """Compiles the drawing of noise; blocks are compiled by whoever trains."""
        self._diffuse = torch.compile(self._diffuse, dynamic=False)  # type: ignore[method-assign]

    def _decode(self, view: MaskedView, hidden_BN: Tensor, *diffused: Tensor) -> Tensor:
        """[B, N, Q]: what the decoder outputs. Args: diffused: its input patches, their timesteps."""
        levels = {"levels": view.levels} if view.levels else {}
        return self.decoder(view.context_BCD, view.mask.ids_keep_BK, hidden_BN, *diffused, **levels)

    def _diffuse(
        self, pixels_BNP: Tensor, clean_BNQ: Tensor, seed_B: Tensor, stream: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder is given (patches under noise, scaled), what it is to predict, and the timesteps."""
        process = self.process
        timestep_BX = process.draw_timesteps(seed_B, stream, pixels_BNP.shape[1])
        noised_BNP = pixels_BNP if self.spec.diffusion.noise_on == "pixel" else clean_BNQ
        noise_BNP = draws.normal(seed_B, f"{stream}_noise", noised_BNP.shape[1:])
        x_t_BNP = process.add_noise(noised_BNP, noise_BNP, timestep_BX)
        return process.scale_input(x_t_BNP, timestep_BX), process.target(clean_BNQ, noise_BNP, timestep_BX), timestep_BX

    def _targets(self, pixels_BNP: Tensor, hidden_BN: Tensor, features_BLD: Tensor | None) -> Tensor:
        """[B, N, Q]: the clean thing to predict of each hidden patch, normalised within itself if so configured."""
        if self.spec.predicts_features:
            if features_BLD is None:
                raise ValueError("objective 'features' needs a teacher's features of the batch")
            pixels_BNP = gather_patches(features_BLD, hidden_BN).float()
        return normalise_patches(pixels_BNP) if self.spec.normalise_target else pixels_BNP
