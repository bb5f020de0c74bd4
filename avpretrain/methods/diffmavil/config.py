"""What a run of DiffMAViL is configured by: its model, its curriculum, its losses, its rounds of self-training.

Pieces that other methods share (inputs, towers, decoders, diffusion; data, optimiser, execution) are in `config/`.
Nothing here imports torch, so that a wrong config fails at once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from avpretrain.config.model import (
    MAX_POSITIONS,
    AudioTowerConfig,
    DiffusionConfig,
    FusionConfig,
    InputConfig,
    Side,
    TowerSpec,
    VideoTowerConfig,
    check_limits,
    require,
)
from avpretrain.config.reader import find_config, from_dict, read_yaml
from avpretrain.config.scaling import LayerSizes, StackConfig
from avpretrain.config.train import DataConfig, EngineConfig, LengthConfig
from avpretrain.core.errors import UsageError

__all__ = ["LossConfig", "ModelConfig", "RatioConfig", "ScheduleConfig", "Stage2Config", "TrainConfig", "load_config"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """L = reconstruction + inter * InfoNCE(audio, video) + intra * InfoNCE(view 1, view 2); 0 turns a term off."""

    reconstruction: float = 1.0
    """Weight of the reconstruction loss."""
    inter: float = 0.1
    """Weight of the contrastive loss between audio and video."""
    intra: float = 0.01
    """Weight of the contrastive loss between two views of one modality."""
    temperature_inter: float = 0.1
    """Temperature of the contrastive loss between audio and video."""
    temperature_intra: float = 1.0
    """Temperature of the contrastive loss between two views."""
    norm_pix_loss: bool = True
    """Targets are normalised patch by patch (MAE)."""

    def __post_init__(self) -> None:
        for name in ("reconstruction", "inter", "intra"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("temperature_inter", "temperature_intra"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        check_limits(self, "reconstruction", "inter", "intra", "temperature_inter", "temperature_intra")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The whole model; MAViL and DiffMAViL differ only in values (defaults: MAViL at paper size)."""

    input: InputConfig = field(default_factory=InputConfig)
    objective: Literal["patches", "features"] = "patches"
    """What decoders predict of hidden patches: their values, or (MAViL's stage 2) a frozen teacher's features."""
    width: int = 768
    """Of both encoders and of the fusion layers."""
    heads: int = 12
    """Attention heads of the encoders and of fusion."""
    mlp_ratio: float = 4.0
    """Width of a block's hidden layer over the width of the block."""
    cls_token: bool = True
    """Whether each encoder has a class token beside its patches."""
    encoder_norm: bool = True
    """A final norm of both encoders, before they are pooled and fused (MAE); MAViL's released code has none."""
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
        check_limits(self, "width", "heads", "mlp_ratio")
        require(self.width % self.heads == 0, f"width {self.width} must be a multiple of heads {self.heads}")
        require(self.decode_views <= self.views, f"decode_views {self.decode_views} exceeds views {self.views}")
        require(self.views == 2 or self.loss.intra == 0, "loss.intra needs views 2; set loss.intra to 0")
        predicts_pixels = self.objective == "patches" and not self.loss.norm_pix_loss
        require(
            self.diffusion.noise_on == "target" or predicts_pixels or self.diffusion.prediction_type == "sample",
            "diffusion.noise_on 'pixel' beside loss.norm_pix_loss or objective 'features' needs "
            "diffusion.prediction_type 'sample'",
        )
        for side, grid in (("audio", self.audio_remainder), ("video", self.video_remainder)):
            require(not any(grid), f"{side}.patch does not divide the input (remainders {grid}); change input or patch")
        for side, tower in (("audio", self.audio), ("video", self.video)):
            require(
                all(0 <= level <= tower.depth for level in tower.decoder.levels),
                f"{side}.decoder.levels must lie in 0 to {tower.depth}, got {list(tower.decoder.levels)}",
            )
        for side, shape in (("audio", self.audio_grid), ("video", self.video_grid)):
            patches = math.prod(shape)
            widest = max(self.width, getattr(self, side).decoder.width)
            require(patches >= 1, f"{side}.patch is larger than the input")
            fits = patches * widest <= MAX_POSITIONS
            require(fits, f"{patches} {side} patches of width {widest} are too many; enlarge {side}.patch")
        require(not self.video.decoder.window, "window serves the audio decoder only")
        if self.audio.decoder.window:
            fits = len(self.audio.decoder.window) == 2 and not any(
                g % w for g, w in zip(self.audio_grid, self.audio.decoder.window, strict=True)
            )
            require(fits, f"audio.decoder.window {self.audio.decoder.window} must divide the grid {self.audio_grid}")
        for side, parts in {"audio": 4, "video": 16}.items():
            for name, width in (("width", self.width), (f"{side}.decoder.width", getattr(self, side).decoder.width)):
                require(width % parts == 0, f"{name} must be a multiple of {parts} for {side} positions, got {width}")

    def stack(self, part: AudioTowerConfig | VideoTowerConfig | FusionConfig) -> LayerSizes:
        """Heads and MLP width of each block of an encoder or of the fusion layers."""
        return part.layers.sizes(self.width, part.depth, self.heads, int(self.width * self.mlp_ratio))

    @property
    def written_out(self) -> ModelConfig:
        """The same model with lists of heads and MLP widths in place of a formula, as weights are saved with."""

        def lists(part: AudioTowerConfig | VideoTowerConfig | FusionConfig) -> StackConfig:
            return part.layers.written_out(self.width, part.depth, self.heads, int(self.width * self.mlp_ratio))

        audio, video, fusion = self.audio, self.video, self.fusion
        return dataclasses.replace(
            self,
            audio=dataclasses.replace(audio, layers=lists(audio), decoder=audio.decoder.written_out),
            video=dataclasses.replace(video, layers=lists(video), decoder=video.decoder.written_out),
            fusion=dataclasses.replace(fusion, layers=lists(fusion)),
        )

    def tower(self, side: Side) -> TowerSpec:
        """All that the tower of one modality is built from."""
        part: AudioTowerConfig | VideoTowerConfig = getattr(self, side)
        return TowerSpec(
            side=side,
            patch=part.patch,
            grid=getattr(self, f"{side}_grid"),
            width=self.width,
            layers=self.stack(part),
            head_width=self.width // self.heads,
            cls_token=self.cls_token,
            learned_positions=part.positions == "learned",
            final_norm=self.encoder_norm,
            mask=part.mask,
            predicts_features=self.objective == "features",
            normalise_target=self.loss.norm_pix_loss,
            diffusion=self.diffusion,
            shift=getattr(self.diffusion, f"{side}_shift"),
            decoder=part.decoder,
        )

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
class RatioConfig:
    """Share of patches hidden, as a function of progress."""

    kind: Literal["constant", "linear", "cosine", "step"] = "constant"
    """How the ratio moves from start to end over training; constant: it stays at start."""
    start: float = 0.8
    """Share of patches hidden at the start of training."""
    end: float = 0.8
    """Not read when constant."""
    levels: int = 5
    """Distinct values on the way from start to end (each is one compiled shape)."""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            require(0 < getattr(self, name) < 1, f"{name} must lie in (0, 1), got {getattr(self, name)}")
        require(self.levels >= 2, f"levels must be at least 2, got {self.levels}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig(LengthConfig):
    """How long to train, and what moves on the way: DiffMAViL's masking ratios."""

    audio_mask_ratio: RatioConfig = field(default_factory=RatioConfig)
    video_mask_ratio: RatioConfig = field(default_factory=RatioConfig)


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
        require(self.rounds >= 1, f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(EngineConfig):
    """Everything a pretraining run of DiffMAViL is made of."""

    init: str = ""
    """Run folder, checkpoint or imported model (`avpretrain import`) whose encoders and fusion a fresh run starts from;
    of an imported one, the parts that were imported. Unless given, its log-mel statistics are taken, too. Empty = all
    weights start afresh."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stage2: Stage2Config = field(default_factory=Stage2Config)


def load_config(name: str) -> TrainConfig:
    """Reads a preset or a YAML file of DiffMAViL; its `name` defaults to the file's.

    Raises:
        UsageError: there is none, it is wrong, or it is of another method.
    """
    path = find_config(name)
    values = read_yaml(path)
    method = values.get("method", "diffmavil")
    if method not in ("diffmavil", "self_training"):
        raise UsageError(f"{path} is a config of method {method}; only 'train' and 'report' know others than diffmavil")
    return from_dict(TrainConfig, {"name": path.stem, **values})
