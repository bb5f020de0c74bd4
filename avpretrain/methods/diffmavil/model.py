"""DiffMAViL, and MAViL as the same model under another config.

One training step, as in the papers: (1) clips to patches; (2) masked views, visible patches alone through two encoders;
(3) contrast between modalities and between views; (4) fusion; (5) hidden patches noised and denoised by the decoders.

Shapes: B clips, V views, L patches, K visible, N hidden, C = K + class token, P values a patch, Q values predicted of a
patch, D encoder width. A dictionary keyed by `SIDES` holds a thing of each modality.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from torch import Tensor, nn

from avpretrain.config.curriculum import MaskRatios
from avpretrain.config.model import ModelConfig
from avpretrain.config.reader import from_dict, to_dict
from avpretrain.core import draws
from avpretrain.data.batch import AVBatch
from avpretrain.methods.diffmavil.card import CARD_TEMPLATE, card_values
from avpretrain.nn.decoder import Decoder
from avpretrain.nn.diffusion import ForwardProcess
from avpretrain.nn.encoder import Encoder, Fusion
from avpretrain.nn.inputs import require_spectrogram, require_video
from avpretrain.nn.layers import init_weights
from avpretrain.nn.losses import PatchStats, contrastive_loss, normalise_patches, patch_mse
from avpretrain.nn.masking import Mask, gather_patches, make_mask, random_part
from avpretrain.nn.patches import patchify_audio, patchify_video, unpatchify_audio, unpatchify_video
from avpretrain.nn.reconstruction import Denoised, MaskedView, Reconstruction, TeacherFeatures, fill_hidden
from avpretrain.nn.weights import read_model

Side = Literal["audio", "video"]
SIDES: tuple[Side, Side] = ("audio", "video")


class DiffMAViL(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="avpretrain",
    license="apache-2.0",
    tags=["audio", "video", "self-supervised", "masked-autoencoder", "diffusion"],
    paper_url="https://arxiv.org/abs/2310.03937",
    model_card_template=CARD_TEMPLATE,
):
    """Masked audio-video learner whose decoders denoise (arXiv 2310.03937) or fill mask tokens (arXiv 2212.08071).

    Args:
        config: the model, or the dictionary of it that a checkpoint's `config.json` holds.
    """

    no_decay = ("_token", "bottleneck", "position_table")
    """How parameters end that weight decay leaves alone."""

    def __init__(self, config: ModelConfig | dict[str, Any]) -> None:
        super().__init__()
        cfg = config if isinstance(config, ModelConfig) else from_dict(ModelConfig, config, "model.")
        self.cfg = cfg
        audio_values = cfg.audio.patch[0] * cfg.audio.patch[1]
        video_values = cfg.video.patch[0] * cfg.video.patch[1] * cfg.video.patch[2] * 3
        self.audio_encoder = self._encoder("audio", audio_values)
        self.video_encoder = self._encoder("video", video_values)
        self.fusion = Fusion(cfg.fusion, cfg.width, cfg.heads, cfg.mlp_ratio)
        self.audio_decoder = self._decoder("audio", audio_values)
        self.video_decoder = self._decoder("video", video_values)
        self.audio_process = ForwardProcess(cfg.diffusion, cfg.diffusion.audio_shift)
        self.video_process = ForwardProcess(cfg.diffusion, cfg.diffusion.video_shift)
        self._teacher: Callable[[AVBatch], TeacherFeatures] | None = None
        self.reset_parameters()

    def teach(self, teacher: Callable[[AVBatch], TeacherFeatures]) -> None:
        """Sets what the training step asks for the features of a batch; it is no part of the model's state."""
        self._teacher = teacher

    def _encoder(self, side: Side, patch_values: int) -> Encoder:
        cfg = self.cfg
        tower, grid = (cfg.audio, cfg.audio_grid) if side == "audio" else (cfg.video, cfg.video_grid)
        learned = tower.positions == "learned"
        return Encoder(
            patch_values,
            grid,
            cfg.width,
            tower.depth,
            cfg.heads,
            cfg.mlp_ratio,
            cfg.cls_token,
            learned,
            cfg.encoder_norm,
        )

    def _decoder(self, side: Side, patch_values: int) -> Decoder:
        cfg = self.cfg
        tower, grid = (cfg.audio, cfg.audio_grid) if side == "audio" else (cfg.video, cfg.video_grid)
        predicted = patch_values if cfg.objective == "patches" else cfg.width
        noised = patch_values if cfg.diffusion.noise_on == "pixel" else predicted
        return Decoder(tower.decoder, noised, predicted, cfg.width, grid, cfg.diffusion.time_conditioning)

    def reset_parameters(self) -> None:
        """Initialises every parameter afresh, as MAE does, from torch's global generator."""
        self.apply(init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith(("cls_token", "mask_token", "bottleneck")):
                nn.init.normal_(parameter, std=0.02)
            elif ".modulation." in name:  # adaLN-Zero: every branch starts closed
                nn.init.zeros_(parameter)
        for encoder in (self.audio_encoder, self.video_encoder):
            if encoder.position_table is not None:
                encoder.position_table.data.copy_(encoder.position_LD[None])

    def compile_parts(self) -> None:
        """Compiles the drawing of noise; blocks are compiled by whoever trains."""
        self._diffuse = torch.compile(self._diffuse, dynamic=False)  # type: ignore[method-assign]

    # --- the training step -------------------------------------------------------------------------------------------

    def forward(self, batch: AVBatch, phase: MaskRatios, teacher: TeacherFeatures | None = None) -> dict[str, Tensor]:
        """Losses of one batch, as scalars: `loss` is the weighted sum, the others are its unweighted parts.

        Args:
            phase: shares of patches to hide.
            teacher: features of the same batch (see `Teacher`), which objective 'features' needs; none = those of the
                teacher that `teach` has set.
        """
        cfg, seed_B = self.cfg, batch.seed_B
        if teacher is None and self._teacher is not None:
            teacher = self._teacher(batch)
        patches = self.patchify(batch)  # [B, L, P] each
        masks = {"audio": self.masks("audio", seed_B, phase.audio), "video": self.masks("video", seed_B, phase.video)}
        audio_VBCD, audio_levels = self._encode_views("audio", patches["audio"], masks["audio"])
        video_VBCD, video_levels = self._encode_views("video", patches["video"], masks["video"])
        levels = {"audio": audio_levels, "video": video_levels}
        losses = self._contrast(audio_VBCD, video_VBCD, batch)
        has = {"audio": batch.has_audio_B, "video": batch.has_video_B}
        errors: dict[Side, list[Tensor]] = {side: [] for side in SIDES}
        for v in range(cfg.decode_views):
            fused = dict(zip(SIDES, self.fusion(audio_VBCD[v], video_VBCD[v]), strict=True))  # [B, C, D] each
            for side in SIDES:
                found = {level: tokens_VBCD[v] for level, tokens_VBCD in levels[side].items()}
                view = MaskedView(patches[side], masks[side][v], fused[side], found)
                out = self.denoise(side, view, seed_B, v, teacher)
                errors[side].append(patch_mse(out.prediction_BNQ, out.target_BNQ, out.weight_BX, has[side]))
        losses |= {f"reconstruction_{side}": torch.stack(errors[side]).mean() for side in SIDES}
        weights = {"reconstruction": cfg.loss.reconstruction, "inter": cfg.loss.inter, "intra": cfg.loss.intra}
        total = torch.stack([weights[name.split("_")[0]] * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses}

    def patchify(self, batch: AVBatch) -> dict[Side, Tensor]:
        """Patches of both modalities, [B, L, P]."""
        return {
            "audio": patchify_audio(batch.audio_BFM, self.cfg.audio.patch),
            "video": patchify_video(batch.video_BTCHW, self.cfg.video.patch),
        }

    def masks(self, side: Side, seed_B: Tensor, ratio: float) -> list[Mask]:
        """One mask for each view, drawn from the clips' seeds."""
        grid = self.cfg.audio_grid if side == "audio" else self.cfg.video_grid
        strategy = self.cfg.audio.mask if side == "audio" else self.cfg.video.mask
        return [make_mask(strategy, seed_B, f"{side}_mask_{view}", grid, ratio) for view in range(self.cfg.views)]

    def _encode_views(self, side: Side, patches_BLP: Tensor, masks: list[Mask]) -> tuple[Tensor, dict[int, Tensor]]:
        """Tokens of all views in one pass of the encoder, and those of blocks its decoder asks for: [V, B, C, D]."""
        encoder = self.audio_encoder if side == "audio" else self.video_encoder
        visible = torch.cat([gather_patches(patches_BLP, mask.ids_keep_BK) for mask in masks])  # [V B, K, P]
        ids = torch.cat([mask.ids_keep_BK for mask in masks])
        wanted, views = sorted(set(self.decoder(side).cfg.levels) - {0}), (len(masks), len(patches_BLP))
        levels: dict[int, Tensor] = {}
        tokens = encoder(visible, ids, levels=levels if wanted else None)  # [V B, C, D]
        return tokens.unflatten(0, views), {level: levels[level].unflatten(0, views) for level in wanted}

    def _contrast(self, audio_VBCD: Tensor, video_VBCD: Tensor, batch: AVBatch) -> dict[str, Tensor]:
        """InfoNCE between the modalities of each view, and between the views of each modality (MAViL, section 3.2)."""
        cfg = self.cfg.loss
        audio = [self.audio_encoder.pool(tokens) for tokens in audio_VBCD]  # V of [B, D]
        video = [self.video_encoder.pool(tokens) for tokens in video_VBCD]
        both_B = batch.has_audio_B & batch.has_video_B
        pairs = zip(audio, video, strict=True)
        losses = {
            "inter": torch.stack([contrastive_loss(a, v, cfg.temperature_inter, both_B) for a, v in pairs]).mean()
        }
        if self.cfg.views == 2:
            temperature = cfg.temperature_intra
            losses["intra_audio"] = contrastive_loss(audio[0], audio[1], temperature, batch.has_audio_B)
            losses["intra_video"] = contrastive_loss(video[0], video[1], temperature, batch.has_video_B)
        return losses

    def denoise(
        self, side: Side, view: MaskedView, seed_B: Tensor, index: int, teacher: TeacherFeatures | None = None
    ) -> Denoised:
        """Noises the hidden patches of one modality at a random timestep and lets its decoder predict them.

        Args:
            index: of the view; each draws its own timesteps and noise.
        """
        decoder, stream = self.decoder(side), f"{side}_{index}"
        hidden_BN = random_part(view.mask.ids_hidden_BN, decoder.cfg.decode_ratio, seed_B, f"{stream}_decoded")
        pixels_BNP = gather_patches(view.patches_BLP, hidden_BN)
        clean_BNQ = self._targets(side, pixels_BNP, hidden_BN, teacher)
        if decoder.cfg.input == "mask_token":
            prediction_BNQ = self._decode(side, view, hidden_BN)
            return Denoised(prediction_BNQ, clean_BNQ, hidden_BN, torch.ones_like(seed_B, dtype=torch.float32))
        input_BNP, target_BNQ, timestep_BX = self._diffuse(side, pixels_BNP, clean_BNQ, seed_B, stream)
        prediction_BNQ = self._decode(side, view, hidden_BN, input_BNP, timestep_BX)
        return Denoised(prediction_BNQ, target_BNQ, hidden_BN, self.process(side).loss_weight(timestep_BX))

    def _decode(self, side: Side, view: MaskedView, hidden_BN: Tensor, *diffused: Tensor) -> Tensor:
        """[B, N, Q]: what the decoder of one modality outputs. Args: diffused: its input patches, their timesteps."""
        levels = {"levels": view.levels} if view.levels else {}
        return self.decoder(side)(view.context_BCD, view.mask.ids_keep_BK, hidden_BN, *diffused, **levels)

    def _diffuse(
        self, side: Side, pixels_BNP: Tensor, clean_BNQ: Tensor, seed_B: Tensor, stream: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder is given (patches under noise, scaled), what it is to predict, and the timesteps."""
        process = self.process(side)
        timestep_BX = process.draw_timesteps(seed_B, stream, pixels_BNP.shape[1])
        noised_BNP = pixels_BNP if self.cfg.diffusion.noise_on == "pixel" else clean_BNQ
        noise_BNP = draws.normal(seed_B, f"{stream}_noise", noised_BNP.shape[1:])
        x_t_BNP = process.add_noise(noised_BNP, noise_BNP, timestep_BX)
        return process.scale_input(x_t_BNP, timestep_BX), process.target(clean_BNQ, noise_BNP, timestep_BX), timestep_BX

    def _targets(self, side: Side, pixels_BNP: Tensor, hidden_BN: Tensor, teacher: TeacherFeatures | None) -> Tensor:
        """[B, N, Q]: the clean thing to predict of each hidden patch, normalised within itself if so configured."""
        if self.cfg.objective == "features":
            if teacher is None:
                raise ValueError("objective 'features' needs a teacher's features of the batch")
            pixels_BNP = gather_patches(teacher.audio_BLD if side == "audio" else teacher.video_BLD, hidden_BN).float()
        return normalise_patches(pixels_BNP) if self.cfg.loss.norm_pix_loss else pixels_BNP

    def decoder(self, side: Side) -> Decoder:
        """The decoder of one modality."""
        return self.audio_decoder if side == "audio" else self.video_decoder

    def process(self, side: Side) -> ForwardProcess:
        """The forward process of one modality."""
        return self.audio_process if side == "audio" else self.video_process

    # --- downstream --------------------------------------------------------------------------------------------------

    def encode_audio(self, audio_BFM: Tensor) -> Tensor:
        """Tokens [B, prefix + L, D] of whole spectrograms of any number of frames (a multiple of the patch).

        Raises:
            ValueError: the shape is another; see `require_spectrogram`.
        """
        require_spectrogram(audio_BFM, self.cfg)
        grid = audio_BFM.shape[1] // self.cfg.audio.patch[0], audio_BFM.shape[2] // self.cfg.audio.patch[1]
        return self.audio_encoder(patchify_audio(audio_BFM, self.cfg.audio.patch), grid=grid)

    def encode_video(self, video_BTCHW: Tensor) -> Tensor:
        """Tokens [B, prefix + L, D] of whole videos of any number of frames and size (multiples of the tubelet).

        Raises:
            ValueError: the shape is another; see `require_video`.
        """
        require_video(video_BTCHW, self.cfg)
        (frames, _, height, width), (t, h, w) = video_BTCHW.shape[1:], self.cfg.video.patch
        grid = frames // t, height // h, width // w
        return self.video_encoder(patchify_video(video_BTCHW, self.cfg.video.patch), grid=grid)

    def encode_masked(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> dict[Side, MaskedView]:
        """The first view of a batch as its decoders meet it."""
        patches, seed_B = self.patchify(batch), batch.seed_B
        masks = {
            "audio": self.masks("audio", seed_B, audio_ratio)[:1],
            "video": self.masks("video", seed_B, video_ratio)[:1],
        }
        encoded = {side: self._encode_views(side, patches[side], masks[side]) for side in SIDES}
        fused = self.fusion(*(encoded[side][0][0] for side in SIDES))
        levels = {side: {level: x_VBCD[0] for level, x_VBCD in encoded[side][1].items()} for side in SIDES}
        return {s: MaskedView(patches[s], masks[s][0], c, levels[s]) for s, c in zip(SIDES, fused, strict=True)}

    def predict_clean(self, side: Side, view: MaskedView, x_t_BNP: Tensor | None, timestep: int) -> Tensor:
        """[B, N, P]: every hidden patch as its decoder sees it clean, in the units of the target.

        Args:
            x_t_BNP: diffused patches at `timestep`; not read by decoders of mask tokens.
        """
        hidden_BN = view.mask.ids_hidden_BN
        if x_t_BNP is None or self.decoder(side).cfg.input == "mask_token":
            return self._decode(side, view, hidden_BN)
        process, shape = self.process(side), hidden_BN.shape[: 1 if self.cfg.diffusion.noise_level == "clip" else 2]
        timestep_BX = torch.full(shape, timestep, device=hidden_BN.device)
        input_BNP = process.scale_input(x_t_BNP, timestep_BX)
        output_BNP = self._decode(side, view, hidden_BN, input_BNP, timestep_BX)
        return process.clean(output_BNP.float(), x_t_BNP, timestep_BX)

    @torch.no_grad()
    def reconstruct(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> Reconstruction:
        """The first view's one-step reconstruction, for pictures.

        Diffused patches start from pure noise. With `norm_pix_loss` the prediction is put back on each patch's own mean
        and variance, as in MAE's figures: those two numbers are not predicted.

        Raises:
            ValueError: the model predicts a teacher's features, which can't be drawn.
        """
        if self.cfg.objective == "features":
            raise ValueError("a model of objective 'features' predicts no patches")
        views = self.encode_masked(batch, audio_ratio, video_ratio)
        filled, hidden = {}, {}
        for side, view in views.items():
            ids_BN = view.mask.ids_hidden_BN
            pixels_BNP = gather_patches(view.patches_BLP, ids_BN)
            noise_BNP = draws.normal(batch.seed_B, f"{side}_start", pixels_BNP.shape[1:])
            clean_BNP = self.predict_clean(side, view, noise_BNP, self.process(side).last)
            if self.cfg.loss.norm_pix_loss:
                clean_BNP = PatchStats.of(pixels_BNP).restore(clean_BNP)
            filled[side] = fill_hidden(view.patches_BLP, clean_BNP, ids_BN)
            hidden[side] = view.mask.mask_BL[:, :, None].expand_as(view.patches_BLP)
        return Reconstruction(
            *(unpatchify_audio(x["audio"], self.cfg.audio_grid, self.cfg.audio.patch) for x in (filled, hidden)),
            *(unpatchify_video(x["video"], self.cfg.video_grid, self.cfg.video.patch) for x in (filled, hidden)),
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> DiffMAViL:
        """The model of a `save_pretrained` folder or of the Hugging Face Hub, on the CPU, in evaluation mode.

        Raises:
            UserError: the weights do not fit their config, or one is not finite.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            return read_model(cls, folder / CONFIG_NAME, folder / SAFETENSORS_SINGLE_FILE).eval()
        config, weights = (
            hf_hub_download(
                str(pretrained_model_name_or_path), name, revision=revision, cache_dir=cache_dir, token=token,
                force_download=force_download, local_files_only=local_files_only,
            )
            for name in (CONFIG_NAME, SAFETENSORS_SINGLE_FILE)
        )  # fmt: skip
        return read_model(cls, Path(config), Path(weights)).eval()

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Writes `model.safetensors`, `config.json` and a model card (huggingface_hub's mixin)."""
        kwargs.setdefault("model_card_kwargs", card_values(self.cfg))
        return super().save_pretrained(
            save_directory, config={"method": "diffmavil", "config": to_dict(self.cfg)}, **kwargs
        )
