"""Tiny models and random batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from avpretrain.config.model import AudioTowerConfig, DecoderConfig, DiffusionConfig, InputConfig, VideoTowerConfig
from avpretrain.data.batch import AVBatch
from avpretrain.methods.diffmavil.config import LossConfig, ModelConfig

INPUT = InputConfig(audio_frames=64, mels=32, video_frames=4, video_size=32, audio_mean=0.0, audio_std=0.5)


def tiny(
    kind: str = "cross",
    source: str = "diffused",
    decoder: dict[str, Any] | None = None,
    diffusion: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    audio: dict[str, Any] | None = None,
    video: dict[str, Any] | None = None,
    **model: Any,
) -> ModelConfig:
    """A model of 16 audio and 32 video patches; dictionaries override fields of its sections."""
    part = DecoderConfig(**{"input": source, "kind": kind, "width": 32, "depth": 2, "heads": 4, **(decoder or {})})
    return ModelConfig(
        **{
            "input": INPUT,
            "width": 48,
            "heads": 4,
            "audio": AudioTowerConfig(**{"patch": (16, 8), "depth": 2, "decoder": part, **(audio or {})}),
            "video": VideoTowerConfig(
                **{"patch": (2, 8, 8), "depth": 2, "decoder": dataclasses.replace(part, window=()), **(video or {})}
            ),
            "diffusion": DiffusionConfig(**(diffusion or {})),
            "loss": LossConfig(**(loss or {})),
            **model,
        }
    )


def random_batch(cfg: ModelConfig, clips: int = 4, seed: int = 0) -> AVBatch:
    """Noise in the shape of clips."""
    generator, size = torch.Generator().manual_seed(seed), cfg.input
    return AVBatch(
        audio_BFM=torch.randn(clips, size.audio_frames, size.mels, generator=generator),
        video_BTCHW=torch.randn(clips, size.video_frames, 3, size.video_size, size.video_size, generator=generator),
        seed_B=torch.arange(clips) + 1000 * seed,
        has_audio_B=torch.ones(clips, dtype=torch.bool),
        has_video_B=torch.ones(clips, dtype=torch.bool),
    )


def smooth_batch(cfg: ModelConfig, clips: int = 4, seed: int = 0) -> AVBatch:
    """Sums of slow waves, a few of them in each clip: hidden patches follow from visible ones."""
    generator, size = torch.Generator().manual_seed(seed), cfg.input

    def waves(*shape: int) -> torch.Tensor:
        mesh = torch.meshgrid(*(torch.linspace(0, 3, n) for n in shape), indexing="ij")
        phases = 6 * torch.rand(clips, len(shape), generator=generator)
        each = [torch.sin(axis[None] + phases[:, i].reshape(-1, *[1] * len(shape))) for i, axis in enumerate(mesh)]
        return torch.stack(each).sum(dim=0)

    return dataclasses.replace(
        random_batch(cfg, clips, seed),
        audio_BFM=waves(size.audio_frames, size.mels),
        video_BTCHW=waves(size.video_frames, 3, size.video_size, size.video_size),
    )
