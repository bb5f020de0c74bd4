"""DiffMAViL, and MAViL as the same model under another config.

One training step, as in the papers: (1) clips to patches; (2) masked views, visible patches alone through two encoders;
(3) contrast between modalities and between views; (4) fusion; (5) hidden patches noised and denoised by the decoders.

Steps 1, 2 and 5 are those of one modality and stand in `nn/tower.py`. Shapes: B clips, V views, L patches, C visible
tokens, P values a patch, D encoder width. A dictionary keyed by `SIDES` holds a thing of each modality.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from torch import Tensor, nn

from avpretrain.config.model import SIDES as SIDES
from avpretrain.config.model import Side as Side
from avpretrain.config.reader import from_dict, to_dict
from avpretrain.core import draws
from avpretrain.data.batch import AVBatch
from avpretrain.data.whole import ModelInput, preprocess
from avpretrain.methods.diffmavil.card import CARD_TEMPLATE, PIPELINE, TAGS, card_values
from avpretrain.methods.diffmavil.config import ModelConfig
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.keys import current_key, rename_keys
from avpretrain.nn.encoder import Encoder, Fusion
from avpretrain.nn.layers import init_weights
from avpretrain.nn.losses import PatchStats, contrastive_loss, patch_mse
from avpretrain.nn.masking import gather_patches
from avpretrain.nn.reconstruction import MaskedView, Reconstruction, TeacherFeatures, fill_hidden
from avpretrain.nn.tower import Tower
from avpretrain.nn.weights import read_model

__all__ = ["DiffMAViL"]


class DiffMAViL(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="avpretrain",
    license="apache-2.0",
    tags=TAGS,
    pipeline_tag=PIPELINE,
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
        self.towers = nn.ModuleDict({side: Tower(cfg.tower(side)) for side in SIDES})
        self.fusion = Fusion(cfg.fusion, cfg.width, cfg.stack(cfg.fusion), cfg.width // cfg.heads)
        self._teacher: Callable[[AVBatch], TeacherFeatures] | None = None
        self.register_load_state_dict_pre_hook(rename_keys)
        self.reset_parameters()

    def teach(self, teacher: Callable[[AVBatch], TeacherFeatures]) -> None:
        """Sets what the training step asks for the features of a batch; it is no part of the model's state."""
        self._teacher = teacher

    def tower(self, side: Side) -> Tower:
        """Encoder and decoder of one modality."""
        return cast(Tower, self.towers[side])

    @property
    def audio_encoder(self) -> Encoder:
        return self.tower("audio").encoder

    @property
    def video_encoder(self) -> Encoder:
        return self.tower("video").encoder

    def parts(self) -> dict[str, nn.Module]:
        """What the model is made of, in the order of the forward pass; these are the names of parts in reports."""
        towers = {side: self.tower(side) for side in SIDES}
        encoders = {f"{side}_encoder": tower.encoder for side, tower in towers.items()}
        decoders = {f"{side}_decoder": tower.decoder for side, tower in towers.items()}
        return {**encoders, "fusion": self.fusion, **decoders}

    @staticmethod
    def current_key(name: str) -> str:
        """What a weight is called now that an earlier version saved as `name`."""
        return current_key(name)

    def reset_parameters(self) -> None:
        """Initialises every parameter afresh, as MAE does, from torch's global generator."""
        for part in self.parts().values():
            part.apply(init_weights)
        for part in self.parts().values():
            for name, parameter in part.named_parameters():
                if name.endswith(("cls_token", "mask_token", "bottleneck")):
                    nn.init.normal_(parameter, std=0.02)
                elif ".modulation." in name:  # adaLN-Zero: every branch starts closed
                    nn.init.zeros_(parameter)
        for side in SIDES:
            encoder = self.tower(side).encoder
            if encoder.position_table is not None:
                encoder.position_table.data.copy_(encoder.position_LD[None])

    def compile_parts(self) -> None:
        """Compiles what is no block; blocks are compiled by whoever trains."""
        for side in SIDES:
            self.tower(side).compile_parts()

    # --- the training step -------------------------------------------------------------------------------------------

    def forward(self, batch: AVBatch, phase: MaskRatios, teacher: TeacherFeatures | None = None) -> dict[str, Tensor]:
        """Losses of one batch, as scalars: `loss` is the weighted sum, the others are its unweighted parts.

        Args:
            phase: shares of patches to hide.
            teacher: features of the same batch (see `Teacher`), which objective 'features' needs; none = those of the
                teacher that `teach` has set.
        """
        cfg, seed_B, towers = self.cfg, batch.seed_B, {side: self.tower(side) for side in SIDES}
        if teacher is None and self._teacher is not None:
            teacher = self._teacher(batch)
        patches = self.patchify(batch)  # [B, L, P] each
        masks = {side: towers[side].masks(seed_B, getattr(phase, side), cfg.views) for side in SIDES}
        encoded = {side: towers[side].encode_views(patches[side], masks[side]) for side in SIDES}  # [V, B, C, D] each
        losses = self._contrast({side: tokens_VBCD for side, (tokens_VBCD, _) in encoded.items()}, batch)
        errors: dict[Side, list[Tensor]] = {side: [] for side in SIDES}
        for v in range(cfg.decode_views):
            fused = dict(zip(SIDES, self.fusion(*(encoded[side][0][v] for side in SIDES)), strict=True))  # [B, C, D]
            for side in SIDES:
                levels = {level: tokens_VBCD[v] for level, tokens_VBCD in encoded[side][1].items()}
                view = MaskedView(patches[side], masks[side][v], fused[side], levels)
                out = towers[side].denoise(view, seed_B, v, None if teacher is None else teacher.of(side))
                errors[side].append(patch_mse(out.prediction_BNQ, out.target_BNQ, out.weight_BX, batch.has[side]))
        losses |= {f"reconstruction_{side}": torch.stack(errors[side]).mean() for side in SIDES}
        weights = {"reconstruction": cfg.loss.reconstruction, "inter": cfg.loss.inter, "intra": cfg.loss.intra}
        total = torch.stack([weights[name.split("_")[0]] * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses}

    def patchify(self, batch: AVBatch) -> dict[Side, Tensor]:
        """Patches of both modalities, [B, L, P]."""
        return {side: self.tower(side).patches.split(batch.clips[side]) for side in SIDES}

    def _contrast(self, tokens: dict[Side, Tensor], batch: AVBatch) -> dict[str, Tensor]:
        """InfoNCE between the modalities of each view, and between the views of each modality (MAViL, section 3.2)."""
        cfg = self.cfg.loss
        pooled = {side: [self.tower(side).encoder.pool(x) for x in tokens[side]] for side in SIDES}  # V of [B, D]
        both_B = batch.has_audio_B & batch.has_video_B
        pairs = zip(pooled["audio"], pooled["video"], strict=True)
        losses = {
            "inter": torch.stack([contrastive_loss(a, v, cfg.temperature_inter, both_B) for a, v in pairs]).mean()
        }
        if self.cfg.views == 2:
            for side, (first_BD, second_BD) in pooled.items():
                valid_B = batch.has[side]
                losses[f"intra_{side}"] = contrastive_loss(first_BD, second_BD, cfg.temperature_intra, valid_B)
        return losses

    # --- downstream --------------------------------------------------------------------------------------------------

    def preprocess(self, path: str | Path) -> ModelInput:
        """A file, all of it, as `encode_audio` ([1, F, M]) and `encode_video` ([1, T, C, H, W]) take it, on the CPU.

        Raises:
            DecodeError: it can't be read, or has neither audio nor video.
            UserError: the config has no log-mel statistics.
        """
        return preprocess(Path(path), self.cfg.input, self.cfg.audio.patch[0], self.cfg.video.patch[0])

    def encode_audio(self, audio_BFM: Tensor) -> Tensor:
        """Tokens [B, prefix + L, D] of whole spectrograms of any number of frames (a multiple of the patch).

        Raises:
            ValueError: the shape is another; see `require_spectrogram`.
        """
        return self.tower("audio").encode(audio_BFM)

    def encode_video(self, video_BTCHW: Tensor) -> Tensor:
        """Tokens [B, prefix + L, D] of whole videos of any number of frames and size (multiples of the tubelet).

        Raises:
            ValueError: the shape is another; see `require_video`.
        """
        return self.tower("video").encode(video_BTCHW)

    def encode_masked(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> dict[Side, MaskedView]:
        """The first view of a batch as its decoders meet it."""
        patches, ratios = self.patchify(batch), {"audio": audio_ratio, "video": video_ratio}
        masks = {side: self.tower(side).masks(batch.seed_B, ratios[side], views=1) for side in SIDES}
        encoded = {side: self.tower(side).encode_views(patches[side], masks[side]) for side in SIDES}
        fused = self.fusion(*(encoded[side][0][0] for side in SIDES))
        levels = {side: {level: x_VBCD[0] for level, x_VBCD in encoded[side][1].items()} for side in SIDES}
        return {s: MaskedView(patches[s], masks[s][0], c, levels[s]) for s, c in zip(SIDES, fused, strict=True)}

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
            tower = self.tower(side)
            clean_BNP = tower.predict_clean(view, noise_BNP, tower.process.last)
            if self.cfg.loss.norm_pix_loss:
                clean_BNP = PatchStats.of(pixels_BNP).restore(clean_BNP)
            filled[side] = tower.patches.join(fill_hidden(view.patches_BLP, clean_BNP, ids_BN))
            hidden[side] = tower.patches.join(view.mask.mask_BL[:, :, None].expand_as(view.patches_BLP))
        return Reconstruction(filled["audio"], hidden["audio"], filled["video"], hidden["video"])

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
            return read_model(cls, ModelConfig, folder / CONFIG_NAME, folder / SAFETENSORS_SINGLE_FILE).eval()
        config, weights = (
            hf_hub_download(
                str(pretrained_model_name_or_path), name, revision=revision, cache_dir=cache_dir, token=token,
                force_download=force_download, local_files_only=local_files_only,
            )
            for name in (CONFIG_NAME, SAFETENSORS_SINGLE_FILE)
        )  # fmt: skip
        return read_model(cls, ModelConfig, Path(config), Path(weights)).eval()

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Writes `model.safetensors`, `config.json` and a model card (huggingface_hub's mixin)."""
        kwargs["model_card_kwargs"] = kwargs.get("model_card_kwargs") or card_values(self.cfg)
        kwargs["config"] = {"method": "diffmavil", "config": to_dict(self.cfg.written_out)}  # push_to_hub passes none
        return super().save_pretrained(save_directory, **kwargs)
