"""A training step without a run around it, on samples of noise: what probes of memory and of speed take apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avpretrain.config.schedules import Phase
from avpretrain.training.build import make_optimizer, prepare_model
from avpretrain.training.graphs import WARM_UP, PhaseGraphs, Update
from avpretrain.training.guards import FiniteGuard
from avpretrain.training.launch import choose_precision
from avpretrain.training.method import Method


class BareStep:
    """A fresh model and its optimiser, on one device.

    Args:
        method: its config's optimiser, precision, compilation and activation checkpointing count; no data are read.
        captured: run steps as CUDA graphs, as `train` does on a GPU.
    """

    def __init__(self, method: Method, device: torch.device, captured: bool = False) -> None:
        self.method, self.cfg, self.device = method, method.cfg, device
        cfg = method.cfg
        torch.manual_seed(cfg.seed)
        model = method.model().to(device)
        self.optimizer = make_optimizer(model, cfg.optim, captured)
        self.guard = FiniteGuard(self.optimizer, device)
        self.model = prepare_model(model, cfg.run)
        self.step: Update = PhaseGraphs(self._step, torch.cuda.Stream(), WARM_UP) if captured else self._step
        bf16 = choose_precision(cfg.run.precision)[0] == "bf16" and (
            cfg.run.precision == "bf16" or device.type == "cuda"
        )
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def losses(self, batch: Any, phase: Phase) -> dict[str, Tensor]:
        """The forward pass."""
        with self.autocast:
            losses: dict[str, Tensor] = self.model(batch, phase)
        return losses

    def update(self) -> None:
        """Clipping and the optimiser's step, gradients dropped."""
        limit = self.cfg.optim.clip_norm or float("inf")
        self.guard.watch(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Lets go of the CUDA graph and its memory; the next step of its phase is captured anew."""
        if isinstance(self.step, PhaseGraphs):
            self.step.close()

    def _step(self, batch: Any, phase: Phase) -> dict[str, Tensor]:
        """Forward, backward, clipping, optimiser: what the training loop does with a batch."""
        losses = self.losses(batch, phase)
        losses["loss"].backward()
        self.update()
        return {name: value.detach() for name, value in losses.items()}
