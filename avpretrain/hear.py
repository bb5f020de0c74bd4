"""The common interface of the HEAR benchmark (HEAR 2021 rules, "Common API"), so that its tools run our checkpoints.

B clips, S waveform samples, F spectrogram frames, T timestamps, D width. Clips of a batch have one length; a clip's
embeddings do not depend on the others.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avpretrain.core.errors import UserError
from avpretrain.data.whole import clip_steps, filled, spectrogram
from avpretrain.evaluation.longform import step_vectors
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model as load_checkpoint

__all__ = ["HearModel", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

DEFAULT_CHECKPOINT = "AVPRETRAIN_CHECKPOINT"
"""Environment variable with the checkpoint that is meant when none is named."""
MAX_HOP_FRAMES = 5
"""Timestamps lie at most 50 ms apart, as the rules suggest."""
_FRAME_MS, _WINDOW_MS = 10.0, 25.0
LOUDEST = 100.0
"""Peak above which floats can't be meant to lie in [-1, 1]: they are samples of integers, unscaled."""


class HearModel(nn.Module):
    """The audio encoder, with the attributes that the rules ask for."""

    def __init__(self, model: DiffMAViL) -> None:
        super().__init__()
        self.model = model.eval()
        self.sample_rate: int = model.cfg.input.sample_rate
        """Hz of the audio that the functions below take."""
        self.scene_embedding_size: int = model.cfg.width
        self.timestamp_embedding_size: int = model.cfg.width

    @property
    def patch(self) -> int:
        """Frames of 10 ms in a step."""
        return self.model.cfg.audio.patch[0]

    @property
    def hop(self) -> int:
        """Frames of 10 ms between timestamps: the largest part of a step that is at most 50 ms."""
        return max(n for n in range(1, MAX_HOP_FRAMES + 1) if self.patch % n == 0)


def load_model(model_file_path: str = "") -> HearModel:
    """Loads a run folder, a checkpoint, a folder by `save_pretrained`, or the model.safetensors in one.

    Args:
        model_file_path: empty = what the environment variable AVPRETRAIN_CHECKPOINT names.

    Raises:
        UserError: there are no weights.
    """
    path = model_file_path or os.environ.get(DEFAULT_CHECKPOINT, "")
    if not path:
        raise UserError(f"name a checkpoint: load_model(PATH), or set {DEFAULT_CHECKPOINT}")
    return HearModel(load_checkpoint(Path(path).parent if path.endswith(".safetensors") else path))


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """One embedding a clip: the mean over its patches.

    Args:
        audio: [B, S] mono at the model's sample rate: floats in [-1, 1], or int16, int32 or uint8 as in wav files.

    Returns:
        float32 [B, D], on the model's device.

    Raises:
        ValueError: the shape or type is another, or samples are not finite or far outside of [-1, 1].
    """
    x_BFM = _spectrogram(audio, model)
    steps = clip_steps(x_BFM.shape[1], model.patch)
    x_BFM = filled(x_BFM, steps * model.patch)
    return step_vectors(model.model, "audio", x_BFM, steps).mean(dim=1)


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embeddings at regular timestamps, each centred on the audio around it.

    A step of the encoder (160 ms in the usual models) is longer than the 50 ms between timestamps that the rules
    suggest, so the audio is encoded several times, shifted by a part of a step, and the results are interleaved.

    Args:
        audio: as `get_scene_embeddings` takes it.

    Returns:
        float32 [B, T, D] embeddings and float32 [B, T] timestamps in milliseconds, on the model's device.

    Raises:
        ValueError: see `get_scene_embeddings`.
    """
    x_BFM = _spectrogram(audio, model)
    patch, hop = model.patch, model.hop
    length_ms = 1000 * audio.shape[1] / model.sample_rate
    # Step j covers frames j * hop - patch / 2 to j * hop + patch / 2, so its centre is frame j * hop.
    first_ms = (_WINDOW_MS - _FRAME_MS) / 2
    count = 1 + max(0, int((length_ms - first_ms) // (hop * _FRAME_MS)))
    shifts = patch // hop
    rounds = -(-count // shifts)
    before, after = patch // 2, rounds * patch + patch - patch // 2 - x_BFM.shape[1]
    # The ends repeat outwards: silence beyond them would be an event of its own.
    x_BFM = F.pad(x_BFM.mT, (before, max(0, after)), mode="replicate").mT
    vectors = [
        step_vectors(model.model, "audio", x_BFM[:, s * hop : s * hop + rounds * patch], rounds) for s in range(shifts)
    ]
    embeddings_BTD = torch.stack(vectors, dim=2).flatten(1, 2)[:, :count]
    timestamps_T = first_ms + hop * _FRAME_MS * torch.arange(count, dtype=torch.float32, device=x_BFM.device)
    return embeddings_BTD, timestamps_T.expand(len(audio), -1)


def _spectrogram(audio: Tensor, model: HearModel) -> Tensor:
    if audio.dim() != 2 or not audio.shape[1]:
        raise ValueError(f"audio must be [clips, samples] with at least one sample, got shape {tuple(audio.shape)}")
    device = next(model.model.parameters()).device
    return spectrogram(_floats(audio.to(device)), model.model.cfg.input)


def _floats(audio: Tensor) -> Tensor:
    """float32 in [-1, 1]; integers are scaled by their type."""
    name = str(audio.dtype).removeprefix("torch.")
    if audio.dtype == torch.uint8:  # silence is 128, as in wav files
        return (audio.float() - 128) / 128
    if audio.dtype in (torch.int16, torch.int32):
        return (audio.double() / 2.0 ** (torch.iinfo(audio.dtype).bits - 1)).float()
    if not audio.is_floating_point():
        raise ValueError(f"audio of type {name} has no usual scale; give floats in [-1, 1], or int16, int32 or uint8")
    audio = audio.float()
    if not torch.isfinite(audio).all():
        raise ValueError("audio has samples that are no finite numbers (NaN or infinity)")
    if audio.numel() and (peak := float(audio.abs().max())) > LOUDEST:
        raise ValueError(f"audio must lie in [-1, 1], its peak is {peak:g}; divide samples of int16 by 32768")
    return audio
