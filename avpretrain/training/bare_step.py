"""A training step without a run around it, on clips of noise: what probes of memory and of speed take apart.

B clips, F spectrogram frames, M mel bins, T video frames, C colours, H height, W width, L patches, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avpretrain.batch import AVBatch
from avpretrain.config import TrainConfig
from avpretrain.draws import normal, sample_seed
from avpretrain.modelconfig import InputConfig, ModelConfig
from avpretrain.models.diffmavil import DiffMAViL
from avpretrain.models.reconstruction import TeacherFeatures
from avpretrain.training.build import make_optimizer, prepare_model
from avpretrain.training.graphs import WARM_UP, PhaseGraphs, Update
from avpretrain.training.guards import FiniteGuard


def random_batch(inputs: InputConfig, batch_size: int, device: torch.device) -> AVBatch:
    """Clips of noise: real values matter, since products with zeros run faster than with data."""
    seed_B = torch.tensor([sample_seed(0, 0, i) for i in range(batch_size)], device=device)
    return AVBatch(
        audio_BFM=normal(seed_B, "audio", (inputs.audio_frames, inputs.mels)),
        video_BTCHW=normal(seed_B, "video", (inputs.video_frames, 3, inputs.video_size, inputs.video_size)),
        seed_B=seed_B,
        has_audio_B=torch.ones(batch_size, dtype=torch.bool, device=device),
        has_video_B=torch.ones(batch_size, dtype=torch.bool, device=device),
    )


def random_features(cfg: ModelConfig, seed_B: Tensor) -> TeacherFeatures | None:
    """What a teacher would say of these clips, as noise; none where there is no teacher."""
    if cfg.objective == "patches":
        return None
    audio_BLD = normal(seed_B, "teacher_audio", (math.prod(cfg.audio_grid), cfg.width))
    return TeacherFeatures(audio_BLD, normal(seed_B, "teacher_video", (math.prod(cfg.video_grid), cfg.width)))


class BareStep:
    """A fresh model and its optimiser, on one device.

    Args:
        cfg: its model, optimiser, precision, compilation and activation checkpointing count; no data are read.
        captured: run steps as CUDA graphs, as `train` does on a GPU.
    """

    def __init__(self, cfg: TrainConfig, device: torch.device, captured: bool = False) -> None:
        self.cfg, self.device = cfg, device
        torch.manual_seed(cfg.seed)
        model = DiffMAViL(cfg.model).to(device)
        self.optimizer = make_optimizer(model, cfg.optim, captured)
        self.guard = FiniteGuard(self.optimizer, device)
        self.model = prepare_model(model, cfg.run)
        self.step: Update = PhaseGraphs(self._step, torch.cuda.Stream(), WARM_UP) if captured else self._step
        bf16 = cfg.run.precision == "bf16" or (cfg.run.precision == "auto" and device.type == "cuda")
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def losses(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> dict[str, Tensor]:
        """The forward pass; a stage-2 student gets noise for its teacher's features."""
        with self.autocast:
            taught = random_features(self.cfg.model, batch.seed_B)
            losses: dict[str, Tensor] = self.model(batch, audio_ratio, video_ratio, taught)
        return losses

    def update(self) -> None:
        """Clipping and the optimiser's step, gradients dropped."""
        limit = self.cfg.optim.clip_norm or float("inf")
        self.guard.watch(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _step(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> dict[str, Tensor]:
        """Forward, backward, clipping, optimiser: what the training loop does with a batch."""
        losses = self.losses(batch, audio_ratio, video_ratio)
        losses["loss"].backward()
        self.update()
        return {name: value.detach() for name, value in losses.items()}
