"""DiffMAViL, and MAViL as the same model under another config.

One training step, as in the papers: (1) clips to patches; (2) masked views, visible patches alone through two encoders;
(3) contrast between modalities and between views; (4) fusion; (5) hidden patches noised and denoised by the decoders.

Shapes: B clips, V views, L patches, K visible, N hidden, C = K + class token, P values a patch, D encoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from avpretrain import draws
from avpretrain.batch import AVBatch
from avpretrain.config import ModelConfig, from_dict, to_dict
from avpretrain.diffusion import ForwardProcess
from avpretrain.losses import contrastive_loss, normalise_patches, patch_mse
from avpretrain.models.decoder import Decoder
from avpretrain.models.encoder import Encoder, Fusion
from avpretrain.models.layers import init_weights
from avpretrain.models.masking import Mask, gather_patches, make_mask
from avpretrain.models.patches import Grid, patchify_audio, patchify_video, unpatchify_audio, unpatchify_video


@dataclass(frozen=True)
class Denoised:
    """What one decoder made of one masked view."""

    prediction_BNP: Tensor
    """In the units of the target (see `ForwardProcess.target`)."""
    target_BNP: Tensor
    ids_hidden_BN: Tensor
    """Places of the decoded patches."""
    weight_B: Tensor
    """Weight of each clip's error, by its timestep."""
    noisy_BNP: Tensor | None = None
    """The diffused patches the decoder saw; none where it saw mask tokens."""
    timestep_B: Tensor | None = None


def _decoded_subset(ids_hidden_BN: Tensor, ratio: float, seed_B: Tensor, stream: str) -> Tensor:
    """A random part of the hidden patches, the same number in each clip (CrossMAE, section 3.3)."""
    if ratio == 1:
        return ids_hidden_BN
    count = max(1, round(ids_hidden_BN.shape[1] * ratio))
    order_BN = draws.uniform(seed_B, f"{stream}_decoded", ids_hidden_BN.shape[1:]).argsort(dim=1, stable=True)
    return ids_hidden_BN.gather(1, order_BN[:, :count])


@dataclass(frozen=True)
class Reconstruction:
    """A masked clip beside what the model makes of it, both in the units of the model's input."""

    audio_BFM: Tensor
    audio_mask_BFM: Tensor
    """1 where the spectrogram was hidden."""
    video_BTCHW: Tensor
    video_mask_BTCHW: Tensor


class DiffMAViL(nn.Module, PyTorchModelHubMixin, library_name="avpretrain", license="apache-2.0"):
    """Masked audio-video learner whose decoders denoise (arXiv 2310.03937) or fill mask tokens (arXiv 2212.08071).

    Args:
        config: the model, or the dictionary of it that a checkpoint's `config.json` holds.
    """

    def __init__(self, config: ModelConfig | dict[str, Any]) -> None:
        super().__init__()
        cfg = config if isinstance(config, ModelConfig) else from_dict(ModelConfig, config, "model.")
        self.cfg = cfg
        audio_values = cfg.audio.patch[0] * cfg.audio.patch[1]
        video_values = cfg.video.patch[0] * cfg.video.patch[1] * cfg.video.patch[2] * 3
        tower = (cfg.heads, cfg.mlp_ratio, cfg.cls_token)
        self.audio_encoder = Encoder(audio_values, cfg.audio_grid, cfg.width, cfg.audio.depth, *tower)
        self.video_encoder = Encoder(video_values, cfg.video_grid, cfg.width, cfg.video.depth, *tower)
        self.fusion = Fusion(cfg.fusion, cfg.width, cfg.heads, cfg.mlp_ratio)
        time = cfg.diffusion.time_conditioning
        self.audio_decoder = Decoder(cfg.audio.decoder, audio_values, cfg.width, cfg.audio_grid, time)
        self.video_decoder = Decoder(cfg.video.decoder, video_values, cfg.width, cfg.video_grid, time)
        self.forward_process = ForwardProcess(cfg.diffusion)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every parameter afresh, as MAE does, from torch's global generator."""
        self.apply(init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith(("cls_token", "mask_token", "bottleneck")):
                nn.init.normal_(parameter, std=0.02)
            elif ".modulation." in name:  # adaLN-Zero: every branch starts closed
                nn.init.zeros_(parameter)

    # --- the training step -------------------------------------------------------------------------------------------

    def forward(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> dict[str, Tensor]:
        """Losses of one batch, as scalars: `loss` is the weighted sum, the others are its unweighted parts.

        Args:
            audio_ratio, video_ratio: shares of patches to hide, in (0, 1).
        """
        audio_BLP, video_BLP = self.patchify(batch)
        audio_masks = self.masks("audio", batch.seed_B, audio_ratio)
        video_masks = self.masks("video", batch.seed_B, video_ratio)
        audio_VBCD = self._encode_views(self.audio_encoder, audio_BLP, audio_masks)
        video_VBCD = self._encode_views(self.video_encoder, video_BLP, video_masks)
        losses = self._contrast(audio_VBCD, video_VBCD, batch)
        reconstructions = [
            self._reconstruct(
                audio_BLP, video_BLP, audio_VBCD[v], video_VBCD[v], audio_masks[v], video_masks[v], batch, v
            )
            for v in range(self.cfg.decode_views)
        ]
        losses["reconstruction_audio"] = torch.stack([audio for audio, _ in reconstructions]).mean()
        losses["reconstruction_video"] = torch.stack([video for _, video in reconstructions]).mean()
        return {"loss": self._total(losses), **losses}

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        cfg = self.cfg.loss
        weights = {"reconstruction": cfg.reconstruction, "inter": cfg.inter, "intra": cfg.intra}
        return torch.stack([weights[name.split("_")[0]] * value for name, value in losses.items()]).sum()

    def patchify(self, batch: AVBatch) -> tuple[Tensor, Tensor]:
        """Patches of both modalities, [B, La, Pa] and [B, Lv, Pv]."""
        return patchify_audio(batch.audio_BFM, self.cfg.audio.patch), patchify_video(
            batch.video_BTCHW, self.cfg.video.patch
        )

    def masks(self, side: str, seed_B: Tensor, ratio: float) -> list[Mask]:
        """One mask for each view of `side` ("audio" or "video"), drawn from the clips' seeds."""
        grid: Grid = self.cfg.audio_grid if side == "audio" else self.cfg.video_grid
        strategy = self.cfg.audio.mask if side == "audio" else self.cfg.video.mask
        return [make_mask(strategy, seed_B, f"{side}_mask_{view}", grid, ratio) for view in range(self.cfg.views)]

    def _encode_views(self, encoder: Encoder, patches_BLP: Tensor, masks: list[Mask]) -> Tensor:
        """[V, B, C, D]: all views in one pass of the encoder."""
        visible = torch.cat([m.ids_keep_BK for m in masks])
        tokens = encoder(patches_BLP.repeat(len(masks), 1, 1), visible)
        return tokens.unflatten(0, (len(masks), len(patches_BLP)))

    def _contrast(self, audio_VBCD: Tensor, video_VBCD: Tensor, batch: AVBatch) -> dict[str, Tensor]:
        """InfoNCE between the modalities of each view, and between the views of each modality (MAViL, section 3.2)."""
        cfg = self.cfg.loss
        audio_VBD = [self.audio_encoder.pool(tokens) for tokens in audio_VBCD]
        video_VBD = [self.video_encoder.pool(tokens) for tokens in video_VBCD]
        both_B = batch.has_audio_B & batch.has_video_B
        inter = [
            contrastive_loss(audio_BD, video_BD, cfg.temperature_inter, both_B)
            for audio_BD, video_BD in zip(audio_VBD, video_VBD, strict=True)
        ]
        losses = {"inter": torch.stack(inter).mean()}
        if self.cfg.views == 2:
            losses["intra_audio"] = contrastive_loss(*audio_VBD, cfg.temperature_intra, batch.has_audio_B)
            losses["intra_video"] = contrastive_loss(*video_VBD, cfg.temperature_intra, batch.has_video_B)
        return losses

    def _reconstruct(
        self,
        audio_BLP: Tensor,
        video_BLP: Tensor,
        audio_BCD: Tensor,
        video_BCD: Tensor,
        audio_mask: Mask,
        video_mask: Mask,
        batch: AVBatch,
        view: int,
    ) -> tuple[Tensor, Tensor]:
        """Reconstruction losses of one view."""
        audio_BCD, video_BCD = self.fusion(audio_BCD, video_BCD)
        audio = self.denoise("audio", audio_BLP, audio_BCD, audio_mask, batch.seed_B, view)
        video = self.denoise("video", video_BLP, video_BCD, video_mask, batch.seed_B, view)
        return (
            patch_mse(audio.prediction_BNP, audio.target_BNP, audio.weight_B * batch.has_audio_B),
            patch_mse(video.prediction_BNP, video.target_BNP, video.weight_B * batch.has_video_B),
        )

    def denoise(
        self,
        side: str,
        patches_BLP: Tensor,
        context_BCD: Tensor,
        mask: Mask,
        seed_B: Tensor,
        view: int = 0,
        timestep_B: Tensor | None = None,
    ) -> Denoised:
        """Fills the hidden patches of one modality: noises them at a random timestep and lets its decoder predict.

        Args:
            timestep_B: instead of a random one, in [0, num_train_timesteps).
        """
        decoder: Decoder = self.audio_decoder if side == "audio" else self.video_decoder
        stream = f"{side}_{view}"
        ids_hidden_BN = _decoded_subset(mask.ids_hidden_BN, decoder.cfg.decode_ratio, seed_B, stream)
        pixels_BNP = gather_patches(patches_BLP, ids_hidden_BN)
        clean_BNP = normalise_patches(pixels_BNP) if self.cfg.loss.norm_pix_loss else pixels_BNP
        if decoder.cfg.input == "mask_token":
            prediction_BNP = decoder(context_BCD, mask.ids_keep_BK, ids_hidden_BN)
            return Denoised(prediction_BNP, clean_BNP, ids_hidden_BN, torch.ones_like(seed_B, dtype=torch.float32))
        if timestep_B is None:
            timestep_B = draws.integers(seed_B, f"{stream}_timestep", self.cfg.diffusion.num_train_timesteps)
        noise_BNP = draws.normal(seed_B, f"{stream}_noise", clean_BNP.shape[1:])
        noised_BNP = pixels_BNP if self.cfg.diffusion.noise_on == "pixel" else clean_BNP
        x_t_BNP = self.forward_process.add_noise(noised_BNP, noise_BNP, timestep_B)
        prediction_BNP = decoder(context_BCD, mask.ids_keep_BK, ids_hidden_BN, x_t_BNP, timestep_B)
        target_BNP = self.forward_process.target(clean_BNP, noise_BNP, timestep_B)
        weight_B = self.forward_process.loss_weight(timestep_B)
        return Denoised(prediction_BNP, target_BNP, ids_hidden_BN, weight_B, x_t_BNP, timestep_B)

    # --- downstream --------------------------------------------------------------------------------------------------

    def encode_audio(self, audio_BFM: Tensor) -> Tensor:
        """Tokens [B, prefix + L, D] of whole spectrograms of any number of frames (a multiple of the patch)."""
        grid = audio_BFM.shape[1] // self.cfg.audio.patch[0], audio_BFM.shape[2] // self.cfg.audio.patch[1]
        return self.audio_encoder(patchify_audio(audio_BFM, self.cfg.audio.patch), grid=grid)

    def encode_video(self, video_BTCHW: Tensor) -> Tensor:
        """Tokens [B, prefix + L, D] of whole videos of any number of frames and size (multiples of the tubelet)."""
        (frames, _, height, width), (t, h, w) = video_BTCHW.shape[1:], self.cfg.video.patch
        grid = frames // t, height // h, width // w
        return self.video_encoder(patchify_video(video_BTCHW, self.cfg.video.patch), grid=grid)

    @torch.no_grad()
    def reconstruct(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> Reconstruction:
        """The first view's one-step reconstruction, for pictures.

        Diffused patches start from pure noise (the last timestep). With `norm_pix_loss` the prediction is put back on each
        patch's own mean and variance, as in MAE's figures: those two numbers are not predicted.
        """
        sides = dict(zip(("audio", "video"), self.patchify(batch), strict=True))
        encoders = {"audio": self.audio_encoder, "video": self.video_encoder}
        masks = {s: self.masks(s, batch.seed_B, r)[0] for s, r in (("audio", audio_ratio), ("video", video_ratio))}
        fused = self.fusion(*(encoders[s](sides[s], masks[s].ids_keep_BK) for s in sides))
        last_B = torch.full_like(batch.seed_B, self.cfg.diffusion.num_train_timesteps - 1)
        filled = {}
        for (side, patches_BLP), context_BCD in zip(sides.items(), fused, strict=True):
            out = self.denoise(side, patches_BLP, context_BCD, masks[side], batch.seed_B, timestep_B=last_B)
            filled[side] = self._fill(patches_BLP, out)
        a, v = self.cfg.audio, self.cfg.video
        audio_mask_BLP = masks["audio"].mask_BL[:, :, None].expand_as(sides["audio"])
        video_mask_BLP = masks["video"].mask_BL[:, :, None].expand_as(sides["video"])
        return Reconstruction(
            audio_BFM=unpatchify_audio(filled["audio"], self.cfg.audio_grid, a.patch),
            audio_mask_BFM=unpatchify_audio(audio_mask_BLP, self.cfg.audio_grid, a.patch),
            video_BTCHW=unpatchify_video(filled["video"], self.cfg.video_grid, v.patch),
            video_mask_BTCHW=unpatchify_video(video_mask_BLP, self.cfg.video_grid, v.patch),
        )

    def _fill(self, patches_BLP: Tensor, out: Denoised) -> Tensor:
        """The clip's patches with the hidden ones replaced by their predictions, [B, L, P]."""
        clean_BNP = out.prediction_BNP
        if out.noisy_BNP is not None and out.timestep_B is not None:
            clean_BNP = self.forward_process.clean(out.prediction_BNP, out.noisy_BNP, out.timestep_B)
        if self.cfg.loss.norm_pix_loss:
            pixels_BNP = gather_patches(patches_BLP, out.ids_hidden_BN)
            clean_BNP = clean_BNP * pixels_BNP.std(dim=-1, keepdim=True) + pixels_BNP.mean(dim=-1, keepdim=True)
        places_BNP = out.ids_hidden_BN[:, :, None].expand_as(clean_BNP)
        return patches_BLP.scatter(1, places_BNP, clean_BNP.to(patches_BLP.dtype))

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Writes `model.safetensors`, `config.json` and a model card (huggingface_hub's mixin)."""
        return super().save_pretrained(save_directory, config={"config": to_dict(self.cfg)}, **kwargs)
