"""How a checkpoint is fine-tuned, and recipes of the field by name.

Numbers are AudioMAE's (same first author as MAViL; its public code) for AudioSet, ESC-50 and Speech Commands, and
CAV-MAE's for VGGSound. They assume ViT-B; smaller encoders want less layer decay and more learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avpretrain.config.train import mechanics
from avpretrain.evaluation.settings import Modality


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Fine-tuning of an encoder, or training of a head on a frozen one."""

    modality: Modality = "audio"
    """What the classifier hears or sees."""
    head: Literal["linear", "attentive"] = "linear"
    """linear: LayerNorm and Linear on mean-pooled tokens (MAViL); attentive: a learned query attends to all tokens."""
    freeze: bool = False
    """Train the head alone (with head 'attentive': the attentive probe)."""
    epochs: int = 50
    """Passes over the training clips, or over samples_per_epoch of them."""
    warmup_epochs: float = 4.0
    """Epochs over which the learning rate rises."""
    samples_per_epoch: int = 0
    """Clips drawn for each epoch; 0 = the training split once."""
    batch_size: int = 32
    """Over all ranks."""
    base_lr: float = 1e-3
    """Peak learning rate of a batch of 256; scaled by batch_size / 256 (MAE)."""
    min_lr: float = 1e-6
    """Learning rate at the end; not scaled by the batch."""
    weight_decay: float = 5e-4
    """AdamW's; not applied to biases and norms."""
    layer_decay: float = 0.75
    """Each block learns at this share of the rate of the block above it; 1 = all alike."""
    drop_path: float = 0.1
    """Chance to skip a branch of the last block; earlier ones proportionally less."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 = no clipping."""
    loss: Literal["auto", "ce", "bce"] = "auto"
    """auto: binary cross-entropy where clips have several classes, else cross-entropy."""
    mixup: float = 0.5
    """Share of clips that are mixed, as waveforms and frames, with another of their batch, lambda from Beta(10, 10)."""
    specaug_bins: int = 48
    """SpecAugment: largest width of the band that is blanked; 0 = none."""
    specaug_frames: int = 192
    """SpecAugment: longest stretch of frames that is blanked; at most a third of the clip; 0 = none."""
    mask_time: float = 0.2
    """Share of the spectrogram's columns of patches that the encoder does not see in training."""
    mask_frequency: float = 0.2
    """Share of its rows of patches."""
    roll: bool = True
    """Roll sounds in time (audio alone; with picture the two stay in step)."""
    gain_db: float = 6.0
    """Sounds are made louder or softer by up to this."""
    balanced: bool = False
    """Draw clips so that rare classes come as often as common ones (with replacement)."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is evaluated; 0 = the weights themselves."""
    select: Literal["last", "best"] = "last"
    """last: weights after the last epoch, nothing chosen; best: the epoch with the best validation score."""
    max_seconds: float = 10.24
    """Clips are trained on by windows of at most this; their middle is evaluated."""
    folds: str = ""
    """Label that names official folds, or how many to make; empty = the data set's splits."""
    train_split: str | tuple[str, ...] = ""
    """Splits that are for training; empty = train and those that end in _train."""
    val_split: str | tuple[str, ...] = ""
    """Splits that are for validation; empty = val."""
    test_split: str | tuple[str, ...] = ""
    """Splits that are for test; empty = test and eval."""
    baselines: bool = True
    """Also train the same architecture from scratch, with the same budget."""
    num_workers: int = mechanics(2)
    """Processes that decode, for each rank; 0 = none of their own."""
    seed: int = 0
    """Of the head, the order of clips, augmentation and the intervals."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "base_lr", "max_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("drop_path", "mixup", "mask_time", "mask_frequency", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be fewer than epochs {self.epochs}")


RECIPES: dict[str, FinetuneConfig] = {
    "as20k": FinetuneConfig(epochs=60, warmup_epochs=4.0, batch_size=32, train_split="balanced_train"),
    "as2m": FinetuneConfig(
        epochs=100, warmup_epochs=10.0, samples_per_epoch=200_000, batch_size=512, base_lr=2e-4, balanced=True
    ),
    "vggsound": FinetuneConfig(
        modality="both", epochs=10, warmup_epochs=1.0, batch_size=48, base_lr=5e-4, balanced=True
    ),
    "esc50": FinetuneConfig(epochs=50, warmup_epochs=5.0, batch_size=32, folds="fold", specaug_frames=96),
    "speech_commands": FinetuneConfig(epochs=50, warmup_epochs=5.0, batch_size=256, loss="bce", specaug_frames=48),
    "small": FinetuneConfig(
        epochs=30, warmup_epochs=3.0, base_lr=4e-3, layer_decay=0.9, drop_path=0.0, specaug_bins=16, specaug_frames=32
    ),
    "attentive_probe": FinetuneConfig(
        head="attentive", freeze=True, epochs=20, warmup_epochs=2.0, base_lr=4e-3, weight_decay=1e-2, drop_path=0.0,
        mixup=0.0, specaug_bins=0, specaug_frames=0, mask_time=0.0, mask_frequency=0.0, roll=False, gain_db=0.0,
    ),
}  # fmt: skip
"""Name to recipe. 'small' is ours, for the small and tiny presets."""
