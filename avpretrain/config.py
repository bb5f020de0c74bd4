"""What can be configured, and strict reading of it.

The frozen dataclasses are the schema: every field has a default, a comment that gives its unit, and a check. Presets in
`configs/` hold only what differs. Nothing here imports torch, so that a wrong config fails at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from avpretrain.errors import UsageError

T = TypeVar("T")


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


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
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        _require(self.audio_std is None or self.audio_std > 0, f"audio_std must be positive, got {self.audio_std}")

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
    depth: int = 8
    heads: int = 16
    decode_ratio: float = 1.0
    """Share of the hidden patches that is decoded and enters the loss (CrossMAE)."""
    window: tuple[int, ...] = ()
    """Local attention windows in patches per axis, joint decoders only, e.g. 4 4 (AudioMAE); empty = global."""

    def __post_init__(self) -> None:
        _require(self.width % self.heads == 0, f"width {self.width} must be a multiple of heads {self.heads}")
        _require(self.depth >= 1, f"depth must be at least 1, got {self.depth}")
        _require(0 < self.decode_ratio <= 1, f"decode_ratio must lie in (0, 1], got {self.decode_ratio}")
        local_ok = self.kind == "joint" and self.decode_ratio == 1
        _require(not self.window or local_ok, "window needs kind 'joint' and decode_ratio 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTowerConfig:
    """Audio encoder, its masking and its decoder."""

    patch: tuple[int, int] = (16, 16)
    """Patch size: frames, mel bins."""
    depth: int = 12
    positions: Literal["fixed", "learned"] = "fixed"
    """fixed: sin-cos (MAE, MAViL); learned: a table trained with the weights (for imported ViTs)."""
    mask: Literal["random", "time", "frequency", "time_frequency"] = "random"
    """Which patches are hidden: independently, or whole columns / rows first (AudioMAE, section 3.1)."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoTowerConfig:
    """Video encoder, its masking and its decoder."""

    patch: tuple[int, int, int] = (2, 16, 16)
    """Tubelet size: frames, pixels, pixels."""
    depth: int = 12
    positions: Literal["fixed", "learned"] = "fixed"
    """fixed: sin-cos (MAE, MAViL); learned: a table trained with the weights (for imported ViTs)."""
    mask: Literal["random", "tube"] = "random"
    """Which tubelets are hidden: independently, or the same places at all times."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """Layers that see both modalities, between encoders and decoders."""

    kind: Literal["joint", "bottleneck"] = "joint"
    """joint: plain blocks over [audio, video]; bottleneck: exchange through a few shared tokens (MBT)."""
    depth: int = 2
    bottleneck_tokens: int = 4

    def __post_init__(self) -> None:
        _require(self.depth >= 0, f"depth must not be negative, got {self.depth}")
        _require(self.bottleneck_tokens >= 1, f"bottleneck_tokens must be at least 1, got {self.bottleneck_tokens}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """Forward process and parameterisation; used by decoders whose input is 'diffused'."""

    num_train_timesteps: int = 1000
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    rho: float = 1.0
    """Exponent on alphas_cumprod; below 1 = less noise (DiffMAE, section 3.3, used 0.8)."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that nothing of a patch is left at the last timestep (Lin et al. 2024); otherwise a
    linear schedule of 1000 steps leaves 0.6% of its amplitude."""
    prediction_type: Literal["sample", "epsilon", "v_prediction"] = "sample"
    """What the decoder outputs; 'sample' = the clean patch (DiffMAE's choice)."""
    time_conditioning: Literal["none", "added", "adaln"] = "added"
    """How a decoder learns the timestep (unknown for DiffMAViL)."""
    noise_on: Literal["target", "pixel"] = "target"
    """What is noised: the very thing that is predicted (normalised patches under `norm_pix_loss`), or always pixels."""
    loss_weighting: Literal["uniform", "min_snr"] = "uniform"
    """min_snr: weights clipped at gamma 5 (Hang et al. 2023)."""

    def __post_init__(self) -> None:
        _require(self.num_train_timesteps >= 1, f"num_train_timesteps must be >= 1, got {self.num_train_timesteps}")
        _require(self.rho > 0, f"rho must be positive, got {self.rho}")
        _require(
            not (self.zero_terminal_snr and self.prediction_type == "epsilon"),
            "zero_terminal_snr leaves prediction_type 'epsilon' nothing to learn at the last timestep; use 'sample'",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """L = reconstruction + inter * InfoNCE(audio, video) + intra * InfoNCE(view 1, view 2); 0 turns a term off."""

    reconstruction: float = 1.0
    inter: float = 0.1
    intra: float = 0.01
    temperature_inter: float = 0.1
    temperature_intra: float = 1.0
    norm_pix_loss: bool = True
    """Targets are normalised patch by patch (MAE)."""

    def __post_init__(self) -> None:
        for name in ("reconstruction", "inter", "intra"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("temperature_inter", "temperature_intra"):
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The whole model; MAViL and DiffMAViL differ only in values (defaults: MAViL at paper size)."""

    input: InputConfig = field(default_factory=InputConfig)
    objective: Literal["patches", "features"] = "patches"
    """What decoders predict of hidden patches: their values, or (MAViL's stage 2) a frozen teacher's features."""
    width: int = 768
    """Of both encoders and of the fusion layers."""
    heads: int = 12
    mlp_ratio: float = 4.0
    cls_token: bool = True
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    video: VideoTowerConfig = field(default_factory=VideoTowerConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    views: Literal[1, 2] = 2
    """Masked views of each clip that are encoded; the intra-modal contrast needs 2."""
    decode_views: Literal[1, 2] = 1
    """How many of these views are reconstructed."""

    def __post_init__(self) -> None:
        _require(self.width % self.heads == 0, f"width {self.width} must be a multiple of heads {self.heads}")
        _require(self.decode_views <= self.views, f"decode_views {self.decode_views} exceeds views {self.views}")
        _require(self.views == 2 or self.loss.intra == 0, "loss.intra needs views 2; set loss.intra to 0")
        predicts_pixels = self.objective == "patches" and not self.loss.norm_pix_loss
        _require(
            self.diffusion.noise_on == "target" or predicts_pixels or self.diffusion.prediction_type == "sample",
            "diffusion.noise_on 'pixel' beside loss.norm_pix_loss or objective 'features' needs "
            "diffusion.prediction_type 'sample'",
        )
        for side, grid in (("audio", self.audio_remainder), ("video", self.video_remainder)):
            _require(
                not any(grid), f"{side}.patch does not divide the input (remainders {grid}); change input or patch"
            )
        _require(not self.video.decoder.window, "window serves the audio decoder only")
        if self.audio.decoder.window:
            fits = len(self.audio.decoder.window) == 2 and not any(
                g % w for g, w in zip(self.audio_grid, self.audio.decoder.window, strict=True)
            )
            _require(fits, f"audio.decoder.window {self.audio.decoder.window} must divide the grid {self.audio_grid}")
        for side, parts in {"audio": 4, "video": 16}.items():
            for name, width in (("width", self.width), (f"{side}.decoder.width", getattr(self, side).decoder.width)):
                _require(width % parts == 0, f"{name} must be a multiple of {parts} for {side} positions, got {width}")

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Audio patches along time and frequency."""
        return self.input.audio_frames // self.audio.patch[0], self.input.mels // self.audio.patch[1]

    @property
    def video_grid(self) -> tuple[int, int, int]:
        """Video tubelets along time, height and width."""
        t, h, w = self.video.patch
        return self.input.video_frames // t, self.input.video_size // h, self.input.video_size // w

    @property
    def audio_remainder(self) -> tuple[int, ...]:
        return self.input.audio_frames % self.audio.patch[0], self.input.mels % self.audio.patch[1]

    @property
    def video_remainder(self) -> tuple[int, ...]:
        t, h, w = self.video.patch
        return self.input.video_frames % t, self.input.video_size % h, self.input.video_size % w


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random changes to training clips, drawn on the device from each clip's own seed."""

    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Area of the random resized crop, as a share of the frame."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Aspect ratios of the random resized crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    gain_db: float = 0.0
    """Waveforms are scaled by a gain uniform in [-gain_db, gain_db]."""
    time_shift: float = 0.0
    """Seconds by which the sound is rolled against the picture, at most, either way; 0 keeps the two in step."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, f"crop_scale must satisfy 0 < low <= high <= 1, got {self.crop_scale}")
        _require(
            0 < self.crop_ratio[0] <= self.crop_ratio[1], f"crop_ratio must rise from above 0, got {self.crop_ratio}"
        )
        _require(0 <= self.flip <= 1, f"flip is a probability, got {self.flip}")
        _require(self.gain_db >= 0, f"gain_db must not be negative, got {self.gain_db}")
        _require(self.time_shift >= 0, f"time_shift must not be negative, got {self.time_shift}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where clips come from and how they are read."""

    shards: tuple[str, ...] = ()
    """Folders or URLs written by `avpretrain shards`; several are read as one set."""
    split: str = "train"
    """Which split to train on; clips without a split count as 'train'; 'all' takes every clip."""
    mode: Literal["random", "stream"] = "random"
    """random: each clip by its offset, in an order that resumes anywhere; stream: whole shards from end to end, where
    random access is dear; resumes at the start of a shard."""
    cache_dir: str = ""
    """Folder that keeps what was read from remote shards; empty = nothing but their manifests is kept."""
    memory_cache_mb: int = 0
    """MiB of decoded clips that each loader process keeps: of clips that fit the model's input, since longer ones are
    cut anew in every epoch. For small sets, where decoding would cost more than the model; 0 = none."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    num_workers: int = 2
    """Processes that decode, for each rank; 0 decodes in the training process."""
    prefetch: int = 4
    """Batches each worker prepares ahead."""
    shuffle_window: int = 16
    """Shards that are read, and shuffled into one another, at a time."""
    max_bad_share: float = 0.05
    """A run stops once more than this share of clips (and at least 20) failed to decode."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "memory_cache_mb"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _require(self.prefetch >= 1, f"prefetch must be at least 1, got {self.prefetch}")
        _require(self.shuffle_window >= 1, f"shuffle_window must be at least 1, got {self.shuffle_window}")
        _require(0 <= self.max_bad_share <= 1, f"max_bad_share must lie in [0, 1], got {self.max_bad_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioConfig:
    """Share of patches hidden, as a function of progress."""

    kind: Literal["constant", "linear", "cosine", "step"] = "constant"
    start: float = 0.8
    end: float = 0.8
    """Not read when constant."""
    levels: int = 5
    """Distinct values on the way from start to end (each is one compiled shape)."""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            _require(0 < getattr(self, name) < 1, f"{name} must lie in (0, 1), got {getattr(self, name)}")
        _require(self.levels >= 2, f"levels must be at least 2, got {self.levels}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    """Clips in one optimiser step over all ranks, as a function of progress."""

    size: int = 512
    """Batch size at the end of training, when the masking ratio has reached its end."""
    rule: Literal["constant", "visible_tokens", "flops", "memory"] = "constant"
    """What stays constant while the masking ratio moves: the batch, or the batch times its tokens / FLOPs / bytes."""
    multiple: int = 8
    """Sizes are rounded down to a multiple of this, which the number of ranks must divide."""
    max_size: int = 1 << 16

    def __post_init__(self) -> None:
        _require(self.multiple >= 1, f"multiple must be at least 1, got {self.multiple}")
        _require(self.size >= self.multiple, f"size {self.size} is smaller than multiple {self.multiple}")
        _require(self.size % self.multiple == 0, f"size {self.size} must be a multiple of {self.multiple}")
        _require(self.max_size >= self.size, f"max_size {self.max_size} is smaller than size {self.size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How long to train, and what moves on the way; progress is counted in clips seen."""

    epochs: float = 20.0
    """Passes over the training split."""
    samples: int | None = None
    """Clips seen in all; overrides epochs."""
    audio_mask_ratio: RatioConfig = field(default_factory=RatioConfig)
    video_mask_ratio: RatioConfig = field(default_factory=RatioConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        _require(self.epochs > 0, f"epochs must be positive, got {self.epochs}")
        _require(self.samples is None or self.samples > 0, f"samples must be positive, got {self.samples}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW with linear warm-up and half a cosine."""

    lr: float = 2e-4
    """Peak learning rate for a batch of `schedule.batch.size` clips."""
    lr_scale: Literal["none", "sqrt", "linear"] = "none"
    """How the learning rate follows a batch that differs from `schedule.batch.size`."""
    warmup: float = 0.1
    """Share of training over which the learning rate rises."""
    min_lr_ratio: float = 0.0
    """Final learning rate as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    """Not applied to biases, norms, tokens."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 = no clipping."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"lr must be positive, got {self.lr}")
        _require(0 <= self.warmup < 1, f"warmup must lie in [0, 1), got {self.warmup}")
        _require(0 <= self.min_lr_ratio <= 1, f"min_lr_ratio must lie in [0, 1], got {self.min_lr_ratio}")
        _require(all(0 <= b < 1 for b in self.betas), f"betas must lie in [0, 1), got {self.betas}")
        _require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        _require(self.clip_norm >= 0, f"clip_norm must not be negative, got {self.clip_norm}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The mechanics of a run; nothing here changes what is learnt."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 0
    """Clips seen between checkpoints; 0 = ten in a run. One is always written at the end."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept; 0 keeps all."""
    preview_every: int = 0
    """Clips seen between previews (pictures of reconstructions, R@1 on a fixed held-out batch); 0 = at checkpoints."""
    preview_clips: int = 16
    """Size of that batch; 0 = no previews."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = bf16 on a GPU that has it, else fp32."""
    compile: bool = False
    """torch.compile: pays after minutes, on a GPU."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    hang_timeout: float = 1800.0
    """Seconds without a finished step after which each rank prints its stacks and the run fails; 0 = never."""

    def __post_init__(self) -> None:
        _require(self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}")
        _require(self.checkpoint_every >= 0, f"checkpoint_every must not be negative, got {self.checkpoint_every}")
        for name in ("keep_checkpoints", "preview_every", "preview_clips", "hang_timeout"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage2Config:
    """Self-training (MAViL's stage 2); read when `model.objective` is 'features'."""

    teacher: str = ""
    """Run folder, checkpoint or saved model whose features of whole clips the first student predicts."""
    rounds: int = 3
    """Students trained one after another, each taught by the one before it."""
    start_from: Literal["scratch", "teacher"] = "scratch"
    """Where a student's encoders and fusion start: afresh, or from its teacher's weights."""

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything a pretraining run is made of; written, resolved, into its output folder."""

    name: str = "avpretrain"
    output_dir: str = ""
    """Folder of the run; empty = runs/NAME."""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir or f"runs/{self.name}")


# --- reading ---------------------------------------------------------------------------------------------------------


def from_dict(cls: type[T], values: Any, path: str = "") -> T:
    """Builds `cls` from nested mappings, strictly.

    Raises:
        UsageError: an unknown key (with the nearest right name), a value of the wrong type, or an impossible value.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise UsageError(f"config key '{path.rstrip('.')}' takes a mapping, got {values!r}")
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean '{path}{close[0]}'?" if close else f"known: {', '.join(sorted(hints))}"
            raise UsageError(f"unknown config key '{path}{key}'; {hint}")
    fields = {key: _convert(hints[key], value, f"{path}{key}") for key, value in values.items()}
    try:
        return cls(**fields)
    except ValueError as error:
        raise UsageError(f"config: {path}{error}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type, or a UsageError that names key, value and type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, path + ".")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, path)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        close = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
        hint_text = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(map(str, args))}"
        raise UsageError(f"config key '{path}' can't be {value!r}; {hint_text}")
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise UsageError(f"config key '{path}' takes {len(args)} values, got {len(value)}: {value!r}")
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(
            _convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = "a list" if origin is tuple else getattr(hint, "__name__", str(hint))
    extra = "; YAML reads 1e-4 as text, write 1.0e-4" if hint is float and isinstance(value, str) else ""
    raise UsageError(f"config key '{path}' takes {name}, got {value!r}{extra}")


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `from_dict`, in plain JSON types."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def presets_dir() -> Path:
    """Folder of the presets: inside the package when installed, `configs/` of the repository in a source tree."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def find_config(name: str) -> Path:
    """The YAML file that `name` means: a path, or the name of a preset.

    Raises:
        UsageError: there is neither; the message gives the nearest preset.
    """
    if Path(name).is_file():
        return Path(name)
    presets = {p.stem: p for p in sorted(presets_dir().glob("*.yaml"))}
    stem = Path(name).name.removesuffix(".yaml")
    if stem in presets and Path(name).parent.name in ("", "configs"):
        return presets[stem]
    close = difflib.get_close_matches(stem, presets, n=1)
    raise UsageError(
        f"no config '{name}'; " + (f"did you mean '{close[0]}'?" if close else f"presets: {', '.join(presets)}")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file as nested dicts, laid over the file its `extends` key names (relative to it)."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold 'key: value' lines, got {type(values).__name__}")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not (path.parent / str(parent)).is_file():
        raise UsageError(f"{path} extends '{parent}', which is not in {path.parent}")
    return _overlay(read_yaml(path.parent / str(parent)), values)


def _overlay(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged


def load_config(name: str) -> TrainConfig:
    """Reads a preset or a YAML file; its `name` defaults to the file's."""
    path = find_config(name)
    return from_dict(TrainConfig, {"name": path.stem, **read_yaml(path)})
