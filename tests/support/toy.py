"""A method of one's own: a linear regression on numbers that are generated from their position."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from avpretrain.config.schedules import Phase, Step
from avpretrain.config.train import EngineConfig
from avpretrain.training.method import Method


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyData:
    """What is generated."""

    samples: int = 64
    inputs: int = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyConfig(EngineConfig):
    """The engine's sections and one of our own."""

    data: ToyData = field(default_factory=ToyData)


@dataclass(frozen=True)
class Half(Phase):
    """Which half of the training it is."""

    second: bool

    def numbers(self) -> dict[str, float]:
        return {"half": 1.0 + self.second}

    def __str__(self) -> str:
        return f"half {1 + self.second}"


class Numbers:
    """The data: sample i is drawn from seed i."""

    fingerprint = "toy"

    def __init__(self, cfg: ToyData) -> None:
        self.cfg = cfg

    def __len__(self) -> int:
        return self.cfg.samples

    def key(self, position: int) -> str:
        return f"number-{position % len(self)}"

    def describe(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "clips": len(self)}

    def batch(self, positions: range) -> Tensor:
        rows = [torch.randn(self.cfg.inputs, generator=torch.Generator().manual_seed(p % len(self))) for p in positions]
        return torch.stack(rows)


class Line(nn.Module):
    """Learns the sum of its inputs."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.line = nn.Linear(inputs, 1)

    def forward(self, batch: Tensor, phase: Half) -> dict[str, Tensor]:
        error = self.line(batch)[:, 0] - batch.sum(dim=1)
        return {"loss": error.square().mean() * (1 + phase.second), "error": error.detach().abs().mean()}


class Regression(Method):
    """The method."""

    cfg: ToyConfig
    config = ToyConfig
    shown = {"error": "error"}  # noqa: RUF012
    measures = {"error": "min"}  # noqa: RUF012

    @property
    def data(self) -> Numbers:
        return Numbers(self.cfg.data)

    def phase(self, progress: float) -> Half:
        return Half(progress >= 0.5)

    def model(self) -> Line:
        return Line(self.cfg.data.inputs)

    def batches(self, steps: Sequence[Step], rank: int, world: int) -> AbstractContextManager[Iterator[Tensor]]:
        def read() -> Iterator[Tensor]:
            for step in steps:
                yield self.data.batch(range(step.seen + rank, step.seen + step.batch_size, world))

        return contextlib.nullcontext(read())

    def example(self, phase: Phase, batch_size: int, device: torch.device) -> Tensor:
        return torch.randn(batch_size, self.cfg.data.inputs, device=device)

    def measure(self, losses: Any) -> dict[str, float]:
        return {"error": losses["error"]}
