"""Floating-point operations as numbers; counting them is `count.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of a part of a model."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __sub__(self, other: Flops) -> Flops:
        return Flops(self.forward - other.forward, self.backward - other.backward)

    def __mul__(self, times: int | float) -> Flops:
        return Flops(self.forward * times, self.backward * times)

    @property
    def training(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


@dataclass(frozen=True, slots=True)
class FlopCount:
    """Floating-point operations of one sample, by component."""

    components: dict[str, Flops]
    """In the order of the forward pass."""

    @property
    def forward(self) -> float:
        return sum(part.forward for part in self.components.values())

    @property
    def training(self) -> float:
        return sum(part.training for part in self.components.values())
