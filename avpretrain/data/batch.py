"""The two shapes of a batch: as decoded (bytes, from the workers) and as the model sees it (floats, on the device).

B clips, S waveform samples, T frames, H height, W width, F spectrogram frames, M mel bins, C colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avpretrain.config.model import Side
from avpretrain.core.tensors import map_tensors

__all__ = ["AVBatch", "RawBatch"]


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Decoded clips, collated by the workers; small integers, so that little travels to the device."""

    waveform_BS: Tensor
    """int16 at the model's sample rate, zero-padded at the end."""
    samples_B: Tensor
    """int64: how many samples of each row are audio; 0 = the clip has none."""
    frames_BTHWC: Tensor
    """uint8 RGB, zero-padded at the bottom and right to the largest frame of the batch."""
    size_B2: Tensor
    """int64: height and width of each clip's frames before padding; (0, 0) = the clip has no video."""
    seed_B: Tensor
    """int64: the seed of everything that is drawn for this sample (see `draws`)."""
    index_B: Tensor
    """int64: row of the clip in the manifest."""
    failed: int = 0
    """Clips that could not be decoded and were replaced in this batch."""
    reasons: tuple[str, ...] = ()
    """Why, one line for each of them."""

    def __len__(self) -> int:
        return len(self.seed_B)

    def to(self, device: torch.device | str) -> RawBatch:
        moved: RawBatch = map_tensors(self, lambda x: x.to(device, non_blocking=True))
        return moved

    def pin_memory(self) -> RawBatch:
        pinned: RawBatch = map_tensors(self, Tensor.pin_memory)
        return pinned


@dataclass(frozen=True, kw_only=True)
class AVBatch:
    """One batch of clips as the model sees it."""

    audio_BFM: Tensor
    """float32: normalised log-mel spectrogram."""
    video_BTCHW: Tensor
    """float32: normalised RGB frames."""
    seed_B: Tensor
    """int64: the seed of the masks, timesteps and noise of each sample."""
    has_audio_B: Tensor
    """bool: False where the clip has no audio; its spectrogram is filler."""
    has_video_B: Tensor
    """bool: False where the clip has no video; its frames are filler."""

    def __len__(self) -> int:
        return len(self.seed_B)

    @property
    def clips(self) -> dict[Side, Tensor]:
        """What each modality's encoder takes."""
        return {"audio": self.audio_BFM, "video": self.video_BTCHW}

    @property
    def has(self) -> dict[Side, Tensor]:
        """bool [B] each: which clips have the modality."""
        return {"audio": self.has_audio_B, "video": self.has_video_B}

    def to(self, device: torch.device | str) -> AVBatch:
        moved: AVBatch = map_tensors(self, lambda x: x.to(device, non_blocking=True))
        return moved
