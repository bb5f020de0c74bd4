"""What `context`, `spectrum` and `inpaint` found of a checkpoint, as their files hold it. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avpretrain.measures.results import Estimate, Measured, Result


@dataclass(frozen=True, kw_only=True)
class MissedDetail(Result):
    """One kind of reconstruction, as shares of the true detail's energy."""

    missed_low: Estimate
    """Of the lower half of the mel bins; `high`: of the upper."""
    missed_high: Estimate
    detail_low: Estimate
    """Energy of the reconstruction's own detail."""
    detail_high: Estimate
    missed_by_mel: tuple[float, ...]
    detail_by_mel: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Spectrum(Measured):
    """Detail of hidden spectrogram patches, by frequency."""

    task: str = "spectrum"
    label: str
    """The split."""
    modality: str = "audio"
    clips: int
    mel_hz: tuple[float, ...]
    """Centre of each mel bin."""
    methods: Mapping[str, MissedDetail]
    """one_step, sampled: as far as the model has them."""
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Benefit(Result):
    """What context is worth to one decoder, at each of its levels of noise."""

    input: str
    """mask_token or diffused."""
    timesteps: tuple[int, ...]
    alphas_cumprod: tuple[float, ...]
    share: tuple[float, ...]
    """Of a training's draws that fall to each level."""
    weight: tuple[float, ...]
    """Of the training's loss, on squared errors of the clean patch."""
    error_own: tuple[float, ...]
    """Mean squared error with a clip's own context."""
    error_other: tuple[float, ...]
    """With another clip's."""
    benefit: tuple[float, ...]
    """The second less the first."""
    gradient: tuple[float, ...]
    """Norm of the weighted loss's gradient with respect to the context."""
    benefit_of_draws: Estimate
    """Mean over the draws of a training."""
    effective_share: Estimate
    """Of the benefit at the most noise."""
    gradient_of_draws: float


@dataclass(frozen=True, kw_only=True)
class Context(Measured):
    """What the encoder is worth to the decoders, by timestep."""

    task: str = "context"
    label: str
    """The split."""
    clips: Mapping[str, int]
    """Of each modality."""
    sides: Mapping[str, Benefit]
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Inpainting(Measured):
    """Errors of hidden patches that were filled in."""

    task: str = "inpaint"
    clips: int
    split: str
    settings: Mapping[str, Any]
    shown: tuple[str, ...]
    """Keys of the clips of which images and audio were written."""
    mse: Mapping[str, Mapping[str, Estimate]]
    """Modality -> filling -> mean squared error over clips."""
