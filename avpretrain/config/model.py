"""The model as configured: frozen dataclasses whose every field has a default, a unit where it needs one, and a check.

Nothing here imports torch, so that a wrong config fails at once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from avpretrain.config.scaling import LayerSizes, StackConfig

__all__ = [
    "AudioTowerConfig",
    "DecoderConfig",
    "DecoderKind",
    "DiffusionConfig",
    "FusionConfig",
    "InputConfig",
    "Side",
    "TowerSpec",
    "VideoTowerConfig",
]

Side = Literal["audio", "video"]
SIDES: tuple[Side, Side] = ("audio", "video")
CHANNELS: dict[Side, int] = {"audio": 1, "video": 3}
"""Of a spectrogram, of a frame."""


def require(ok: bool, message: str) -> None:
    """Raises a ValueError with `message` unless `ok`; `from_dict` adds the key's path to it."""
    if not ok:
        raise ValueError(message)


LIMITS: dict[str, tuple[float, float]] = {
    "sample_rate": (1000, 384_000), "audio_frames": (1, 1_000_000), "mels": (1, 1024), "audio_mean": (-1e4, 1e4),
    "audio_std": (1e-9, 1e4), "video_frames": (1, 4096), "video_fps": (1e-3, 1000), "video_size": (1, 4096),
    "width": (1, 65_536), "depth": (0, 128), "heads": (1, 4096), "mlp_ratio": (1 / 64, 64), "decode_ratio": (0, 1),
    "bottleneck_tokens": (1, 65_536), "num_train_timesteps": (1, 4000), "rho": (0, 10),
    "reconstruction": (0, 1e6), "inter": (0, 1e6), "intra": (0, 1e6),
    "temperature_inter": (1e-6, 1e6), "temperature_intra": (1e-6, 1e6), "audio_shift": (1e-4, 1e4),
    "video_shift": (1e-4, 1e4), "logit_mean": (-100, 100), "logit_std": (1e-6, 100), "sigma_data": (1e-4, 1e4),
}  # fmt: skip
"""What no model is outside of; a config of a stranger's may say anything, and sizes become memory."""
MAX_CONFIG_BYTES = 1 << 20
"""Largest `config.json` of a model; one of ours has three kilobytes."""
MAX_POSITIONS = 1 << 25
"""Largest product of width and patches: its table of positions takes four bytes each."""


def check_limits(config: object, *names: str) -> None:
    """Raises a ValueError unless each field lies within `LIMITS`; NaN and infinity lie nowhere."""
    for name in names:
        value, (low, high) = getattr(config, name), LIMITS[name]
        require(value is None or low <= value <= high, f"{name} must lie in [{low:g}, {high:g}], got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class InputConfig:
    """One clip as the model sees it; saved with the weights, since features are worthless under other settings."""

    sample_rate: int = 16_000
    """Hz."""
    audio_frames: int = 1024
    """Spectrogram frames of 10 ms; 1024 = 10.24 s (MAViL: 10 s padded)."""
    mels: int = 128
    """Mel bins."""
    audio_mean: float | None = None
    """Mean of the log-mel; none = measured on the training shards (AudioSet: -4.2677393)."""
    audio_std: float | None = None
    """Standard deviation of the log-mel; inputs are (x - mean) / (2 std) (AudioSet: 4.5689974)."""
    video_frames: int = 8
    """Frames a clip."""
    video_fps: float = 2.0
    """Frames a second; 8 frames at 2 fps = 4 s (MAViL)."""
    video_size: int = 224
    """Height and width in pixels."""

    def __post_init__(self) -> None:
        for name in ("sample_rate", "audio_frames", "mels", "video_frames", "video_fps", "video_size"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(self.audio_std is None or self.audio_std > 0, f"audio_std must be positive, got {self.audio_std}")
        check_limits(
            self,
            "sample_rate",
            "audio_frames",
            "mels",
            "audio_mean",
            "audio_std",
            "video_frames",
            "video_fps",
            "video_size",
        )

    @property
    def audio_seconds(self) -> float:
        """Length of waveform that fills `audio_frames`: 25 ms windows at a 10 ms hop."""
        return self.audio_frames * 0.01 + 0.015

    @property
    def video_seconds(self) -> float:
        """Length of video that `video_frames` spans."""
        return self.video_frames / self.video_fps


DecoderKind = Literal["joint", "cross_self", "cross"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """One modality's decoder."""

    input: Literal["mask_token", "diffused"] = "mask_token"
    """What stands at a hidden patch: a learned token (MAViL) or the patch under noise (DiffMAViL)."""
    kind: DecoderKind = "joint"
    """joint: self-attention over all tokens; cross_self: hidden tokens attend to visible ones, then to each other;
    cross: hidden tokens attend to visible ones only (DiffMAE, section 3.2)."""
    width: int = 512
    """Values of a token in the decoder."""
    depth: int = 8
    """Blocks of the decoder."""
    heads: int = 16
    """Attention heads of the decoder."""
    layers: StackConfig = field(default_factory=StackConfig)
    decode_ratio: float = 1.0
    """Share of the hidden patches that is decoded and enters the loss (CrossMAE)."""
    window: tuple[int, ...] = ()
    """Local attention windows in patches per axis, joint decoders only, e.g. 4 4 (AudioMAE); empty = global."""
    levels: tuple[int, ...] = ()
    """For each block the encoder block, counted from 1, whose tokens it attends to, e.g. 0 0 0 9 9 6 6 3; 0 = the fused
    tokens; kinds cross and cross_self only (DiffMAE, section 3.2). Empty = the fused tokens for all."""

    def __post_init__(self) -> None:
        check_limits(self, "width", "depth", "heads", "decode_ratio")
        require(self.width % self.heads == 0, f"width {self.width} must be a multiple of heads {self.heads}")
        self.layers.check(self.depth)
        require(all(size >= 1 for size in self.window), f"window must be positive, got {self.window}")
        require(self.depth >= 1, f"depth must be at least 1, got {self.depth}")
        require(0 < self.decode_ratio <= 1, f"decode_ratio must lie in (0, 1], got {self.decode_ratio}")
        local_ok = self.kind == "joint" and self.decode_ratio == 1
        require(not self.window or local_ok, "window needs kind 'joint' and decode_ratio 1")
        if self.levels:
            require(self.kind != "joint", "levels need kind 'cross' or 'cross_self'")
            require(len(self.levels) == self.depth, f"levels needs one for each of {self.depth} blocks")
            require(0 in self.levels, f"levels must hold 0, the fused tokens, at least once, got {list(self.levels)}")

    @property
    def sizes(self) -> LayerSizes:
        """Heads and MLP width of each block."""
        return self.layers.sizes(self.width, self.depth, self.heads, 4 * self.width)

    @property
    def written_out(self) -> DecoderConfig:
        """The same decoder with its lists in place of a formula."""
        layers = self.layers.written_out(self.width, self.depth, self.heads, 4 * self.width)
        return dataclasses.replace(self, layers=layers)


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTowerConfig:
    """Audio encoder, its masking and its decoder."""

    patch: tuple[int, int] = (16, 16)
    """Patch size: frames, mel bins."""
    depth: int = 12
    """Blocks of the audio encoder."""
    layers: StackConfig = field(default_factory=StackConfig)
    positions: Literal["fixed", "learned"] = "fixed"
    """fixed: sin-cos (MAE, MAViL); learned: a table trained with the weights (for imported ViTs)."""
    mask: Literal["random", "time", "frequency", "time_frequency"] = "random"
    """Which patches are hidden: independently, or whole columns / rows first (AudioMAE, section 3.1)."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        check_limits(self, "depth")
        self.layers.check(self.depth)
        require(all(size >= 1 for size in self.patch), f"patch must be positive, got {self.patch}")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoTowerConfig:
    """Video encoder, its masking and its decoder."""

    patch: tuple[int, int, int] = (2, 16, 16)
    """Tubelet size: frames, pixels, pixels."""
    depth: int = 12
    """Blocks of the video encoder."""
    layers: StackConfig = field(default_factory=StackConfig)
    positions: Literal["fixed", "learned"] = "fixed"
    """fixed: sin-cos (MAE, MAViL); learned: a table trained with the weights (for imported ViTs)."""
    mask: Literal["random", "tube"] = "random"
    """Which tubelets are hidden: independently, or the same places at all times."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        check_limits(self, "depth")
        self.layers.check(self.depth)
        require(all(size >= 1 for size in self.patch), f"patch must be positive, got {self.patch}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """Layers that see both modalities, between encoders and decoders."""

    kind: Literal["joint", "bottleneck"] = "joint"
    """joint: plain blocks over [audio, video]; bottleneck: exchange through a few shared tokens (MBT)."""
    depth: int = 2
    """Blocks in which audio and video tokens meet."""
    layers: StackConfig = field(default_factory=StackConfig)
    bottleneck_tokens: int = 4
    """Tokens through which audio and video meet where kind is bottleneck."""
    norm: bool = True
    """A final norm; MAViL's released code has none."""

    def __post_init__(self) -> None:
        require(self.depth >= 0, f"depth must not be negative, got {self.depth}")
        check_limits(self, "depth", "bottleneck_tokens")
        self.layers.check(self.depth)
        require(self.bottleneck_tokens >= 1, f"bottleneck_tokens must be at least 1, got {self.bottleneck_tokens}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """Forward process and parameterisation; used by decoders whose input is 'diffused'."""

    num_train_timesteps: int = 1000
    """Timesteps of the diffusion process."""
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    """How the noise grows with the timestep."""
    rho: float = 1.0
    """Exponent on alphas_cumprod; below 1 = less noise (DiffMAE, section 3.3, used 0.8)."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that nothing of a patch is left at the last timestep (Lin et al. 2024); otherwise a
    linear schedule of 1000 steps leaves 0.6% of its amplitude."""
    audio_shift: float = 1.0
    """Divides the signal-to-noise ratio of audio by its square, at every timestep: t' = s t / (1 + (s - 1) t) of
    rectified flow (Esser et al. 2024, equation 23), a shifted log-SNR (Hoogeboom et al. 2023, equation 11). Above 1 =
    more noise: a patch of many alike values shows itself through noise that hides each of them."""
    video_shift: float = 1.0
    """The same for video; by resolution, the square root of the ratio of its values a patch to those of audio."""
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    """How timesteps are drawn; logit_normal: t / T = sigmoid(mean + std * normal) (Esser et al. 2024, equation 19)."""
    logit_mean: float = 0.0
    """Above 0 = more noise; read by logit_normal."""
    logit_std: float = 1.0
    """Read by logit_normal."""
    noise_level: Literal["clip", "patch"] = "clip"
    """What shares a timestep: all hidden patches of a clip (DDPM), or each has its own (Chen et al. 2024, diffusion
    forcing)."""
    mask_share: float = 0.0
    """Share of timesteps drawn as pure noise (alpha_bar 0), where the task is MAViL's: 0 = diffusion, 1 = no draw shows
    anything of a patch. Ours; a way to mix the two."""
    prediction_type: Literal["sample", "epsilon", "v_prediction", "edm"] = "sample"
    """What the decoder outputs; 'sample' = the clean patch (DiffMAE's choice); edm: F in the clean patch = c_skip x_t +
    c_out F, so that what x_t tells need not pass through the decoder (Karras et al. 2022, equation 7 and table 1)."""
    input_scale: Literal["none", "signal", "unit"] = "none"
    """What x_t is multiplied by before it is embedded; signal: sqrt(alpha_bar), so that pure noise is a zero patch and
    the embedding's bias a mask token (ours); unit: EDM's c_in, unit variance given `sigma_data`."""
    sigma_data: float = 1.0
    """Standard deviation of clean patches, for 'edm' and 'unit'; normalised patches have 1."""
    time_conditioning: Literal["none", "added", "adaln"] = "added"
    """How a decoder learns the timestep (unknown for DiffMAViL)."""
    noise_on: Literal["target", "pixel"] = "target"
    """What is noised: the very thing that is predicted (normalised patches under `norm_pix_loss`), or always pixels."""
    loss_weighting: Literal["uniform", "min_snr", "clean", "noise", "snr", "truncated_snr", "edm"] = "uniform"
    """Weight on the error of the clean patch, whatever is predicted; clean: 1; noise: 1 - alpha_bar (ours: what x_t
    does not tell); min_snr: min(SNR, 5) (Hang et al. 2023, section 3.4); truncated_snr: max(SNR, 1) (Salimans & Ho
    2022, section 4); snr: SNR (DDPM's simple loss); edm: 1 / c_out^2 (Karras et al. 2022, equation 8). uniform: 1 on
    the error of what is predicted, so 'clean' for 'sample', 'snr' for 'epsilon', 'edm' for 'edm' (and, at sigma_data
    1, for 'v_prediction')."""

    def __post_init__(self) -> None:
        require(self.num_train_timesteps >= 1, f"num_train_timesteps must be >= 1, got {self.num_train_timesteps}")
        for name in ("rho", "audio_shift", "video_shift", "logit_std", "sigma_data"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(0 <= self.mask_share <= 1, f"mask_share must lie in [0, 1], got {self.mask_share}")
        check_limits(
            self, "num_train_timesteps", "rho", "audio_shift", "video_shift", "logit_mean", "logit_std", "sigma_data"
        )
        pure = self.zero_terminal_snr or self.mask_share > 0
        require(
            not (pure and self.prediction_type == "epsilon"),
            "zero_terminal_snr and mask_share leave prediction_type 'epsilon' nothing to learn at pure noise; use "
            "'sample'",
        )
        require(
            self.noise_level == "clip" or self.time_conditioning != "adaln",
            "noise_level 'patch' needs time_conditioning 'none' or 'added': adaln modulates all tokens of a clip alike",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSpec:
    """What one modality's tower is built from: `ModelConfig` with everything worked out for that side."""

    side: Side
    patch: tuple[int, ...]
    grid: tuple[int, ...]
    """Patches along each axis."""
    width: int
    """Of the encoder."""
    layers: LayerSizes
    """Of the encoder."""
    head_width: int
    cls_token: bool
    learned_positions: bool
    final_norm: bool
    mask: str
    """Strategy by which patches are hidden."""
    predicts_features: bool
    """Of a teacher, instead of patches."""
    normalise_target: bool
    """Each patch of the target within itself."""
    diffusion: DiffusionConfig
    shift: float
    """Of the diffusion process (see `DiffusionConfig.audio_shift`)."""
    decoder: DecoderConfig

    @property
    def patches(self) -> int:
        """L, patches of a whole clip."""
        return math.prod(self.grid)

    @property
    def patch_values(self) -> int:
        """P, values in one patch."""
        return math.prod(self.patch) * CHANNELS[self.side]

    @property
    def predicted_values(self) -> int:
        """Q, values that the decoder predicts of each hidden patch."""
        return self.width if self.predicts_features else self.patch_values

    @property
    def noised_values(self) -> int:
        """Values of each diffused patch."""
        return self.patch_values if self.diffusion.noise_on == "pixel" else self.predicted_values

    def decoded(self, hidden: int) -> int:
        """How many of so many hidden patches the decoder predicts."""
        ratio = self.decoder.decode_ratio
        return hidden if ratio == 1 else max(1, round(hidden * ratio))
