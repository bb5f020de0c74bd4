"""What decoders made of a masked clip, and how it is put back among the visible patches.

B clips, L patches, N hidden patches, C context tokens, D width, P values a patch, Q values predicted of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from avpretrain.config.model import Side
from avpretrain.nn.masking import Mask

__all__ = ["Denoised", "MaskedView", "Reconstruction", "TeacherFeatures", "fill_hidden"]


@dataclass(frozen=True)
class MaskedView:
    """One modality of a masked batch as its decoder meets it."""

    patches_BLP: Tensor
    """All patches, hidden ones too."""
    mask: Mask
    context_BCD: Tensor
    """Fused tokens of the visible patches, any class token first."""
    levels: dict[int, Tensor] = field(default_factory=dict)
    """Encoder block -> its tokens, [B, C, D], of the blocks that the decoder attends to."""


@dataclass(frozen=True)
class Denoised:
    """What one decoder made of one masked view."""

    prediction_BNQ: Tensor
    """In the units of the target (see `ForwardProcess.target`)."""
    target_BNQ: Tensor
    ids_hidden_BN: Tensor
    """Places of the decoded patches."""
    weight_BX: Tensor
    """Weight of each clip's error, or of each patch's, by its timestep."""


@dataclass(frozen=True)
class TeacherFeatures:
    """A teacher's fused tokens of whole clips, class tokens left out: the targets of stage 2."""

    audio_BLD: Tensor
    video_BLD: Tensor

    def of(self, side: Side) -> Tensor:
        """[B, L, D]: those of one modality."""
        return {"audio": self.audio_BLD, "video": self.video_BLD}[side]


@dataclass(frozen=True)
class Reconstruction:
    """A masked clip and what the model makes of it, both in the units of the model's input."""

    audio_BFM: Tensor
    audio_mask_BFM: Tensor
    """1 where the spectrogram was hidden."""
    video_BTCHW: Tensor
    video_mask_BTCHW: Tensor


def fill_hidden(patches_BLP: Tensor, filling_BNP: Tensor, ids_hidden_BN: Tensor) -> Tensor:
    """[B, L, P]: the patches with those named replaced."""
    places_BNP = ids_hidden_BN[:, :, None].expand_as(filling_BNP)
    return patches_BLP.scatter(1, places_BNP, filling_BNP.to(patches_BLP.dtype))
