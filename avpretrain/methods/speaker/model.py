"""An active speaker detector: face crops and audio to a score for each frame, over a window that its config states.

B samples, T frames, H height, W width, S waveform samples, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from avpretrain.config.reader import from_dict
from avpretrain.config.schedules import Phase
from avpretrain.core.errors import UserError
from avpretrain.core.files import mistaken_for, read_head, read_json
from avpretrain.core.tensors import map_tensors
from avpretrain.methods.speaker.chunks import ChunkEncoder
from avpretrain.methods.speaker.config import SpeakerModelConfig
from avpretrain.methods.speaker.encoder import FrameEncoder
from avpretrain.methods.speaker.fusion import make_fusion
from avpretrain.nn.rms_norm import RMSNorm
from avpretrain.nn.weights import check_finite, compare, read_header

METHOD = "speaker"
"""Name under which its weights are registered."""


@dataclass(frozen=True, kw_only=True)
class TrackBatch:
    """Parts of face tracks, as they are read and as the model sees them."""

    faces_BTHW: UInt8[Tensor, "b t h w"]
    """Grey values."""
    waveform_BS: Float[Tensor, "b s"]
    """In [-1, 1], 640 samples a frame."""
    labels_BT: Int[Tensor, "b t"]
    """1 speaking and audible, 0 not, -1 unlabelled."""
    frames_B: Int[Tensor, " b"]
    """Real frames of each sample; those after them are padding, with label -1."""

    def __len__(self) -> int:
        return len(self.frames_B)

    def to(self, device: torch.device | str) -> TrackBatch:
        """The batch on a device."""
        moved: TrackBatch = map_tensors(self, lambda x: x.to(device, non_blocking=True))
        return moved


class SpeakerModel(nn.Module):
    """Encoders of a frame, their sum, fusion over time, a logit for each frame.

    Args:
        visual_loss: weight of the loss of a score that sees the faces alone.
    """

    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cfg: SpeakerModelConfig, visual_loss: float = 0.0) -> None:
        super().__init__()
        self.cfg, self.visual_loss = cfg, visual_loss
        self.encoder = (ChunkEncoder if cfg.encoder.chunked else FrameEncoder)(cfg.encoder, cfg.width)
        self.fusion = make_fusion(cfg.fusion, cfg.width)
        self.norm = RMSNorm(cfg.width)
        self.head = nn.Linear(cfg.width, 1)
        self.visual_head = nn.Linear(cfg.width, 1)

    def forward(self, batch: TrackBatch, phase: Phase | None = None) -> dict[str, Tensor]:
        """Losses: the mean over samples of the mean cross-entropy of their labelled frames.

        Returns:
            `loss`, which is minimised: `fused`, plus `visual_loss` times `visual`, the loss of the faces alone.
        """
        valid_BT = torch.arange(batch.labels_BT.shape[1], device=batch.frames_B.device) < batch.frames_B[:, None]
        visual_BTD, audio_BTD = self.encoder(batch.faces_BTHW.float(), batch.waveform_BS)
        fused = cross_entropy(self._logits(visual_BTD + audio_BTD, valid_BT), batch.labels_BT)
        visual = cross_entropy(self.visual_head(visual_BTD)[..., 0], batch.labels_BT)
        loss = fused + self.visual_loss * visual
        return {"loss": loss, "fused": fused.detach(), "visual": visual.detach()}

    def logits(
        self, faces_BTHW: Tensor, waveform_BS: Float[Tensor, "b s"], valid_BT: Tensor | None = None
    ) -> Float[Tensor, "b t"]:
        """A logit for each frame of whole tracks.

        Args:
            faces_BTHW: grey values in [0, 255], of any type.
            waveform_BS: in [-1, 1], 640 samples a frame.
            valid_BT: which frames are real, the first ones of each sample; none = all.
        """
        visual_BTD, audio_BTD = self.encoder(faces_BTHW.float(), waveform_BS)
        return self._logits(visual_BTD + audio_BTD, valid_BT)

    def _logits(self, z_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.score(self.fusion(z_BTD, valid_BT))

    def score(self, fused_BTD: Tensor) -> Tensor:
        """[B, T]: logits of frames that are fused."""
        return self.head(self.norm(fused_BTD))[..., 0].float()

    @classmethod
    def from_pretrained(cls, folder: Path) -> SpeakerModel:
        """The model in a folder with `model.safetensors` and `config.json`, on the CPU, in evaluation mode.

        Raises:
            UserError: a file is missing or damaged, the weights do not fit their config, or one is not finite.
        """
        weights, cfg = folder / "model.safetensors", read_model_config(folder / "config.json")
        if weights.is_file() and (mistaken := mistaken_for(read_head(weights))):
            raise UserError(f"{weights} {mistaken}")
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in cls(cfg).state_dict().items()}
        compare(wanted, read_header(weights), weights)
        try:
            state = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{weights} is damaged: {str(error)[:200]}") from None
        check_finite(state, weights)
        model = cls(cfg)
        model.load_state_dict(state)
        return model.eval()


def cross_entropy(logits_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over samples of the mean over their labelled frames; without any, 0."""
    known_BT = labels_BT >= 0
    loss_BT = F.binary_cross_entropy_with_logits(logits_BT.float(), (labels_BT == 1).float(), reduction="none")
    return ((loss_BT * known_BT).sum(dim=1) / known_BT.sum(dim=1).clamp(min=1)).mean()


def read_model_config(path: Path) -> SpeakerModelConfig:
    """The config of a model from its `config.json`.

    Raises:
        UserError: there is none, it is impossible, or it is of another kind of model.
    """
    values = read_json(path, "model config")
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        raise UserError(f"model config {path} is not of one of this package's models")
    method = str(values.get("method", "diffmavil"))[:60]
    if method != METHOD:
        raise UserError(f"{path} is of a model of method {method}, which detects no speakers; name weights of one")
    try:
        return from_dict(SpeakerModelConfig, values["config"], "model.")
    except (UserError, TypeError) as error:
        raise UserError(f"model config {path}: {error}") from None
