"""DiffMAViL as a method that the engine trains: what it is trained on, by which curriculum, and what it shows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from avpretrain.config.schedules import Cost, Phase, Step
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError
from avpretrain.core.files import read_json
from avpretrain.data.batch import AVBatch, RawBatch
from avpretrain.data.features import Features
from avpretrain.data.read.dataset import ClipSet, Loader, train_loader
from avpretrain.data.read.log_mel_stats import log_mel_stats
from avpretrain.data.read.sampler import Order
from avpretrain.data.splits import is_held_out, split_text
from avpretrain.methods.diffmavil.config import ModelConfig, TrainConfig
from avpretrain.methods.diffmavil.cost import clip_flops, cost_of
from avpretrain.methods.diffmavil.curriculum import MaskRatios, phase_at, phases_of
from avpretrain.methods.diffmavil.example import random_batch
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.diffmavil.preview import Previewer
from avpretrain.nn.weights import read_model_config
from avpretrain.training.folders import CONFIG as WEIGHTS_CONFIG
from avpretrain.training.folders import find_weights
from avpretrain.training.method import Method, Preview
from avpretrain.training.run import CONFIG_NAME, run_config

TRAINED = ("audio_encoder", "video_encoder", "fusion")
"""Parts that a run can take over from other weights; decoders may predict something else."""
IMPORT_NAME = "import.json"
"""What `avpretrain import` says of the weights that it wrote."""


class TrainingClips:
    """The clips of a run in the order of training."""

    def __init__(self, clips: ClipSet, cfg: TrainConfig) -> None:
        self.clips, self.split = clips, split_text(cfg.data.split)
        self._order = Order(clips.shard_sizes, cfg.data.shuffle_window, cfg.seed)

    @property
    def fingerprint(self) -> str:
        """Of the sets, all splits; their order does not matter."""
        return self.clips.fingerprint

    def __len__(self) -> int:
        return len(self.clips)

    def key(self, position: int) -> str:
        """The clip's key."""
        return self.clips.clip(self._order.row(self._order.place(position))).key

    def describe(self) -> dict[str, Any]:
        """Fingerprint, number of clips, split."""
        return {"fingerprint": self.fingerprint, "clips": len(self), "split": self.split}


class DiffMAViLMethod(Method):
    """Stage 1: hidden patches are denoised (DiffMAViL) or filled in (MAViL), audio and video are contrasted."""

    cfg: TrainConfig
    config = TrainConfig
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {"reconstruction": "min", "recall": "max"}
    shown: ClassVar[Mapping[str, str]] = {
        "recon a": "reconstruction_audio",
        "recon v": "reconstruction_video",
        "inter": "inter",
    }

    def __init__(self, cfg: EngineConfig) -> None:
        super().__init__(cfg)
        self.max_lost_share = self.cfg.data.max_bad_share
        self.previews = self.cfg.run.preview_clips > 0
        self._features: Features | None = None

    # --- before the first step ---------------------------------------------------------------------------------------

    def open(self) -> Sequence[str]:
        """Opens the clips; log-mel statistics are filled in, unless given, and formulas of layers become lists."""
        if self.cfg.init:
            known = read_model_config(find_weights(self.cfg.init) / WEIGHTS_CONFIG, ModelConfig)
            self.cfg = with_log_mel_of(self.cfg, known)
        data = self.cfg.data
        self.clips = ClipSet(data.shards, data.split, data.cache_dir, data.request_timeout)
        self.cfg = resolve(self.cfg, self.clips)
        self.cfg = dataclasses.replace(self.cfg, model=self.cfg.model.written_out)
        return held_out(data.split, self.clips)

    @functools.cached_property
    def data(self) -> TrainingClips:
        """The clips that `open` opened."""
        return TrainingClips(self.clips, self.cfg)

    def phase(self, progress: float) -> MaskRatios:
        """The masking ratios of the curriculum."""
        return phase_at(progress, self.cfg.schedule)

    def phases(self) -> list[Phase]:
        """All pairs of masking ratios, in order."""
        return list(phases_of(self.cfg.schedule))

    def check(self, steps: Sequence[Step]) -> None:
        """Refuses batches in which clips must come twice: a contrastive loss would take a clip's copy for a negative.

        Raises:
            UsageError: a batch is larger than the split, and a contrastive loss is on.
        """
        largest, loss, clips = max(step.batch_size for step in steps), self.cfg.model.loss, len(self.data)
        if largest > clips and (loss.inter or loss.intra):
            batch = self.cfg.schedule.batch
            at = "" if largest == batch.size else f" (up to {largest} by schedule.batch.rule {batch.rule})"
            raise UsageError(
                f"schedule.batch.size is {batch.size}{at}, but the split '{self.cfg.data.split}' has {clips} clips: "
                "copies of a clip would count as its negatives; lower schedule.batch.size, add clips, or set "
                "model.loss.inter and model.loss.intra to 0"
            )

    def cost(self, rule: str) -> Cost:
        """Visible tokens, FLOPs or estimated bytes of a clip."""
        return cost_of(self.cfg.model, rule)

    def flops(self, phase: Phase, batch_size: int) -> float:
        """By the analytic count of `cost/clip.py`."""
        ratios = cast(MaskRatios, phase)
        return clip_flops(self.cfg.model, ratios.audio, ratios.video, batch_size).training

    # --- training ----------------------------------------------------------------------------------------------------

    def model(self) -> DiffMAViL:
        """Both encoders, fusion, both decoders."""
        return DiffMAViL(self.cfg.model)

    def initialise(self, model: nn.Module) -> None:
        """Copies encoders and fusion from the weights that `init` names, if any."""
        if self.cfg.init:
            start_from(self.cfg.init, model)

    def batches(self, steps: Sequence[Step], rank: int, world: int) -> Loader:
        """Decoded clips, by processes of their own."""
        cfg = self.cfg
        return train_loader(cfg.data, cfg.model.input, cfg.seed, steps, rank, world, clips=self.clips)

    def lost(self, raw: RawBatch) -> Sequence[str]:
        """Why clips could not be decoded."""
        return raw.reasons

    def prepare(self, raw: RawBatch, phase: Phase, device: torch.device) -> AVBatch:
        """Log-mel spectrograms and normalised, augmented frames."""
        if self._features is None:
            self._features = Features(self.cfg.model.input, self.cfg.data.augment).to(device)
        batch: AVBatch = self._features(raw.to(device))
        return batch

    def example(self, phase: Phase, batch_size: int, device: torch.device) -> AVBatch:
        """Clips of noise."""
        return random_batch(self.cfg.model.input, batch_size, device)

    # --- between steps -----------------------------------------------------------------------------------------------

    def measure(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The reconstruction loss, audio plus video."""
        return {"reconstruction": losses["reconstruction_audio"] + losses["reconstruction_video"]}

    @functools.cached_property
    def _previewer(self) -> Previewer:
        return Previewer(self.cfg)

    def preview(self, model: nn.Module, step: Step) -> Preview | None:
        """Draws reconstructions of held-out clips; measures R@1 among them."""
        return self._previewer.show(cast(DiffMAViL, model), cast(MaskRatios, step.phase), step.seen + step.batch_size)

    @property
    def model_config(self) -> ModelConfig:
        """The model's section of the config."""
        return self.cfg.model

    def save(self, model: nn.Module, folder: Path) -> None:
        """As `DiffMAViL.save_pretrained` does, with a model card."""
        cast(DiffMAViL, model).save_pretrained(folder)


def start_from(init: str, model: nn.Module) -> None:
    """Copies trained parts into a fresh model.

    Args:
        init: run folder, checkpoint or imported model; of an imported one, the parts that were imported count.

    Raises:
        UsageError: a part has other layers or sizes than the model's.
        UserError: there are no weights, or they are damaged.
    """
    folder = find_weights(init)
    source = DiffMAViL.from_pretrained(folder)
    parts: tuple[str, ...] = TRAINED
    if (folder / IMPORT_NAME).is_file():
        loaded = read_json(folder / IMPORT_NAME, "import report").get("loaded", {})
        parts = tuple(part for part in TRAINED if loaded.get(part))
    for part in parts:
        try:
            model.get_submodule(part).load_state_dict(source.get_submodule(part).state_dict())
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UsageError(
                f"the {part} of {init} does not fit model.*: {first}; give the run the model section of its config"
            ) from None


def with_log_mel_of(cfg: TrainConfig, model: ModelConfig) -> TrainConfig:
    """The config with the log-mel statistics of a trained model, unless it has some of its own."""
    inputs = cfg.model.input
    if inputs.audio_mean is not None or inputs.audio_std is not None:
        return cfg
    known = dataclasses.replace(inputs, audio_mean=model.input.audio_mean, audio_std=model.input.audio_std)
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, input=known))


def held_out(split: str | tuple[str, ...], clips: ClipSet) -> list[str]:
    """Warns of clips that are meant for evaluation, if a run trains on some."""
    names = {name: count for name, count in clips.clips_by_split.items() if is_held_out(name)}
    if not names:
        return []
    counts = ", ".join(f"{name} {count}" for name, count in names.items())
    return [
        f"data.split {split_text(split)} trains on clips that are meant for evaluation ({counts}); scores on them will "
        "not be those of new clips. --data.split takes several names"
    ]


def resolve(cfg: TrainConfig, clips: ClipSet) -> TrainConfig:
    """The config with what depends on the data filled in: log-mel statistics, unless given.

    A run that has begun keeps those that it began with, however they were measured then.
    """
    inputs = cfg.model.input
    if inputs.audio_mean is not None and inputs.audio_std is not None:
        return cfg
    mean, std = _begun_with(cfg) or log_mel_stats(clips, inputs.mels, inputs.sample_rate)
    inputs = dataclasses.replace(
        inputs,
        audio_mean=mean if inputs.audio_mean is None else inputs.audio_mean,
        audio_std=std if inputs.audio_std is None else inputs.audio_std,
    )
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, input=inputs))


def _begun_with(cfg: TrainConfig) -> tuple[float, float] | None:
    """Log-mel statistics of the run that the folder holds, where it has the same audio input."""
    if not (cfg.run_dir / CONFIG_NAME).is_file():
        return None
    there, here = run_config(cfg.run_dir, TrainConfig).model.input, cfg.model.input
    same = (there.mels, there.sample_rate) == (here.mels, here.sample_rate)
    if not same or there.audio_mean is None or there.audio_std is None:
        return None
    return there.audio_mean, there.audio_std
