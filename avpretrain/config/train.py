"""What can be configured: frozen dataclasses are the schema, and `model` holds the model's part of it.

Every field has a default, a comment that gives its unit, and a check. Presets in `configs/` hold only what differs
(`reader` reads them). Nothing here imports torch, so that a wrong config fails at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avpretrain.config.model import require

__all__ = [
    "MECHANICS",
    "AugmentConfig",
    "BatchConfig",
    "DataConfig",
    "EngineConfig",
    "LengthConfig",
    "OptimConfig",
    "RunConfig",
    "Tracker",
    "mechanics",
]

MECHANICS = "mechanics"
"""Mark of fields that say how a run is carried out, not what is learned. Resuming, grouping and comparing runs, and
looking for finished cells and evaluations, do not look at them: `reader.learnt_config` leaves them out."""


def mechanics(default: Any) -> Any:
    """A field with that mark and a default."""
    return field(default=default, metadata={MECHANICS: True})


Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "none"
]


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
    """Seconds by which the audio is rolled relative to the video, at most, either way; 0 keeps the two in step."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"crop_scale must satisfy 0 < low <= high <= 1, got {self.crop_scale}")
        require(
            0 < self.crop_ratio[0] <= self.crop_ratio[1], f"crop_ratio must rise from above 0, got {self.crop_ratio}"
        )
        require(0 <= self.flip <= 1, f"flip is a probability, got {self.flip}")
        require(self.gain_db >= 0, f"gain_db must not be negative, got {self.gain_db}")
        require(self.time_shift >= 0, f"time_shift must not be negative, got {self.time_shift}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where clips come from and how they are read."""

    shards: tuple[str, ...] = mechanics(())
    """Folders or URLs written by `avpretrain shards`; several are read as one set. What counts is what they hold."""
    split: str | tuple[str, ...] = "train"
    """Which split to train on, or which several; clips without a split count as 'train'. A set without a split of that
    name gives its `..._train` splits for 'train'; 'all' takes every clip, those for evaluation too, and says so."""
    mode: Literal["random", "stream"] = "random"
    """random: each clip by its offset, in an order that resumes anywhere; stream: whole shards from end to end, where
    random access is expensive; resumes at the start of a shard."""
    cache_dir: str = mechanics("")
    """Folder that keeps what was read from remote shards; empty = nothing but their manifests is kept."""
    request_timeout: float = mechanics(5.0)
    """Seconds that a remote store may be silent before a request is repeated; after twice as long the run stops."""
    memory_cache_mb: int = mechanics(0)
    """MiB of decoded clips that each loader process keeps: of clips that fit the model's input, since longer ones are
    cut anew in every epoch. For small sets, where decoding would cost more than the model; 0 = none."""
    decoded_dir: str = mechanics("")
    """Folder that keeps decoded clips, of those that fit the model's input, for all processes, ranks and runs; a second
    run decodes nothing. Takes the size of the raw frames and samples; may be deleted at any time. Empty = none, as with
    mode stream."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    num_workers: int = mechanics(2)
    """Processes that decode, for each rank; 0 decodes in the training process."""
    prefetch: int = mechanics(4)
    """Batches each worker prepares ahead."""
    shuffle_window: int = 16
    """Shards that are read, and shuffled into one another, at a time."""
    max_bad_share: float = mechanics(0.05)
    """A run stops once more than this share of clips (and at least 20) failed to decode."""

    def __post_init__(self) -> None:
        splits = (self.split,) if isinstance(self.split, str) else self.split
        require(bool(splits) and all(splits), f"split must name a split, or several, got {self.split!r}")
        require(len(set(splits)) == len(splits), f"split names one twice: {', '.join(splits)}")
        if len(splits) == 1:  # one way to write one split, so that equal configs are equal
            object.__setattr__(self, "split", splits[0])
        for name in ("num_workers", "memory_cache_mb"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require(self.request_timeout > 0, f"request_timeout must be above 0, got {self.request_timeout}")
        require(self.prefetch >= 1, f"prefetch must be at least 1, got {self.prefetch}")
        require(self.shuffle_window >= 1, f"shuffle_window must be at least 1, got {self.shuffle_window}")
        require(0 <= self.max_bad_share <= 1, f"max_bad_share must lie in [0, 1], got {self.max_bad_share}")


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
    """Largest batch that the rule may give."""
    bytes_per_clip: tuple[tuple[float, ...], ...] = ()
    """Rule memory: for each phase its numbers (DiffMAViL: audio ratio, video ratio) and the bytes of a clip there.
    Empty = measured when a run begins on a GPU, and kept in its config.yaml; estimated on a CPU."""

    def __post_init__(self) -> None:
        require(self.multiple >= 1, f"multiple must be at least 1, got {self.multiple}")
        require(self.size >= self.multiple, f"size {self.size} is smaller than multiple {self.multiple}")
        require(self.size % self.multiple == 0, f"size {self.size} must be a multiple of {self.multiple}")
        require(self.max_size >= self.size, f"max_size {self.max_size} is smaller than size {self.size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthConfig:
    """How long to train, and on how much at once; progress is counted in samples seen."""

    epochs: float = 20.0
    """Passes over the training split."""
    samples: int | None = None
    """Samples (clips) seen in all; overrides epochs."""
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        require(self.epochs > 0, f"epochs must be positive, got {self.epochs}")
        require(self.samples is None or self.samples > 0, f"samples must be positive, got {self.samples}")


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
    """AdamW's decay rates of the first and second moments."""
    weight_decay: float = 0.05
    """Not applied to biases, norms, tokens."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 = no clipping."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr must be positive, got {self.lr}")
        require(0 <= self.warmup < 1, f"warmup must lie in [0, 1), got {self.warmup}")
        require(0 <= self.min_lr_ratio <= 1, f"min_lr_ratio must lie in [0, 1], got {self.min_lr_ratio}")
        require(all(0 <= b < 1 for b in self.betas), f"betas must lie in [0, 1), got {self.betas}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        require(self.clip_norm >= 0, f"clip_norm must not be negative, got {self.clip_norm}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The mechanics of a run; nothing here changes what is learned."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 0
    """Clips seen between checkpoints; 0 = ten in a run. One is always written at the end."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept; 0 keeps all."""
    keep_best: str = "auto"
    """One more checkpoint that is kept: the best by a measure of the method, or 'none'. DiffMAViL knows
    'reconstruction' (lowest loss, audio plus video, mean over the steps since the checkpoint before it) and 'recall'
    (highest R@1 of a preview at its clips). auto = the method's first."""
    preview_every: int = 0
    """Clips seen between previews (images of reconstructions, R@1 on a fixed held-out batch); 0 = at checkpoints."""
    preview_clips: int = 16
    """Size of that batch; 0 = no previews."""
    tracker: Tracker = "tensorboard"
    """Where metrics, settings and reconstructions go in addition to metrics.jsonl; its package has to be installed.
    comet_ml, dvclive and trackio get no images."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = as the launcher was asked, else bf16 on a GPU that computes in it, else fp32."""
    compile: bool = False
    """torch.compile: pays after minutes, on a GPU."""
    cuda_graphs: Literal["auto", "always", "never"] = "auto"
    """The whole step as one CUDA graph, captured once a phase of the curriculum: the same losses, sooner. auto = on
    GPUs, unless weights are sharded (FSDP); always = refuse to train where it can't be; never = kernel by kernel."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    hang_timeout: float = 1800.0
    """Seconds without a finished step after which each rank prints its stacks and the run fails; 0 = never."""

    def __post_init__(self) -> None:
        require(self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}")
        require(self.checkpoint_every >= 0, f"checkpoint_every must not be negative, got {self.checkpoint_every}")
        for name in ("keep_checkpoints", "preview_every", "preview_clips", "hang_timeout"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What the engine reads of a run's config, whatever it trains; a method adds its own sections.

    Written, resolved, into the run's folder.
    """

    name: str = mechanics("avpretrain")
    """Name of the run; by default that of the config's file."""
    output_dir: str = mechanics("")
    """Folder of the run; empty = runs/NAME."""
    method: str = "diffmavil"
    """What is trained: a registered name, or the dotted class of a method of your own (package.module.Class)."""
    seed: int = 0
    """Of everything random: weights, order of clips, augmentation, masks, noise."""
    schedule: LengthConfig = field(default_factory=LengthConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig, metadata={MECHANICS: True})

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir or f"runs/{self.name}")
