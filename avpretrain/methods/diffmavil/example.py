"""Clips of noise, in the shapes of a model's input: for measurements of time and memory.

B clips, F spectrogram frames, M mel bins, T video frames, C colours, H height, W width, L patches, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avpretrain.config.model import InputConfig
from avpretrain.core.draws import normal, sample_seed
from avpretrain.data.batch import AVBatch
from avpretrain.methods.diffmavil.config import ModelConfig
from avpretrain.nn.reconstruction import TeacherFeatures


def random_batch(inputs: InputConfig, batch_size: int, device: torch.device) -> AVBatch:
    """Clips of noise: real values matter, since products with zeros run faster than with data."""
    seed_B = torch.tensor([sample_seed(0, 0, i) for i in range(batch_size)], device=device)
    return AVBatch(
        audio_BFM=normal(seed_B, "audio", (inputs.audio_frames, inputs.mels)),
        video_BTCHW=normal(seed_B, "video", (inputs.video_frames, 3, inputs.video_size, inputs.video_size)),
        seed_B=seed_B,
        has_audio_B=torch.ones(batch_size, dtype=torch.bool, device=device),
        has_video_B=torch.ones(batch_size, dtype=torch.bool, device=device),
    )


def random_features(cfg: ModelConfig, seed_B: Tensor) -> TeacherFeatures:
    """What a teacher would say of clips, as noise."""
    audio_BLD = normal(seed_B, "teacher_audio", (math.prod(cfg.audio_grid), cfg.width))
    return TeacherFeatures(audio_BLD, normal(seed_B, "teacher_video", (math.prod(cfg.video_grid), cfg.width)))
