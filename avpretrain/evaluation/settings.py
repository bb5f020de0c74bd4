"""What can be chosen of an evaluation. Nothing here imports torch, so that help and wrong arguments come at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avpretrain.config.model import Side as Side

Modality = Literal["audio", "video", "both"]
PoolingKind = Literal["mean", "cls", "mean_cls", "bands"]
Per = Literal["file", "window", "step"]


@dataclass(frozen=True)
class Pooling:
    """How a clip's tokens become one vector."""

    kind: PoolingKind = "mean"
    """Mean over patches (MAViL), the class token, both in turn; or `bands`: for sound the mean over time of each band
    of patches, one band after the other (Niizumi et al. 2022), for picture the mean."""
    layers: int = 1
    """Last layers of the encoder whose vectors are concatenated."""


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """On what clips the benefit of context is measured, and how finely."""

    split: str = "val"
    """Split that the clips are from."""
    clips: int = 192
    """Spread evenly over the split."""
    ratio: float = 0.8
    """Share of patches hidden, of audio and of video."""
    levels: int = 10
    """Timesteps looked at: the middle of so many equal parts; pure noise is one more."""
    batch_size: int = 16
    """Clips at a time."""
    num_workers: int = 2
    """Processes that decode."""
    seed: int = 0
    """Of the intervals."""


@dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """How much is hidden and how it is filled."""

    audio_ratio: float = 0.8
    """Share of audio patches hidden."""
    video_ratio: float = 0.8
    """Share of video patches hidden."""
    sampler: Literal["ddim", "ddpm"] = "ddim"
    """ddim: deterministic given the noise it starts from; ddpm: fresh noise at every step."""
    steps: int = 50
    """Steps of the reverse chain."""
    statistics: Literal["neighbours", "own"] = "neighbours"
    """Where `norm_pix_loss` models get a patch's mean and variance: from visible patches around it, or from the hidden
    truth, as in MAE's figures."""


@dataclass(frozen=True, kw_only=True)
class InpaintRun:
    """Which clips are filled, and for which of them files are written."""

    split: str = "test"
    """Split that the clips are from."""
    clips: int = 64
    """Clips that the errors are averaged over, spread evenly over the split."""
    shown: int = 4
    """The first of them, of which pictures and sounds are written."""
    batch_size: int = 8
    """Clips at a time."""
    num_workers: int = 2
    """Processes that decode."""
    seed: int = 0
    """Of the intervals."""


@dataclass(frozen=True, kw_only=True)
class SpectrumConfig:
    """What is reconstructed, and how."""

    split: str = "test"
    """Split that the clips are from."""
    clips: int = 256
    """Spread evenly over the split."""
    ratio: float = 0.8
    """Share of patches hidden, of sound and of picture."""
    steps: int = 20
    """Of the reverse chain."""
    batch_size: int = 16
    """Clips at a time."""
    num_workers: int = 2
    """Processes that decode."""
    seed: int = 0
    """Of the intervals."""
