"""Floating-point operations of a training step, counted from the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avpretrain.config.schedules import Phase

COUNTED = 2
"""Samples in the batch that is counted."""


def count_flops(
    build: Callable[[], nn.Module], example: Callable[[Phase, int, torch.device], Any], phase: Phase
) -> float:
    """FLOPs of training on one sample, forward and backward, as `FlopCounterMode` counts them (2 m n k a product).

    The model is built and run on the meta device, which computes nothing; one that asks for values runs on the CPU.

    Args:
        build: makes the model; `forward(batch, phase)` returns losses.
        example: a batch of so many samples on a device.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return _count(build, example, phase, torch.device("meta"))
        except (NotImplementedError, RuntimeError):
            return _count(build, example, phase, torch.device("cpu"))


def _count(
    build: Callable[[], nn.Module],
    example: Callable[[Phase, int, torch.device], Any],
    phase: Phase,
    device: torch.device,
) -> float:
    with device:
        model, batch = build(), example(phase, COUNTED, device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch, phase)["loss"].backward()
    return counter.get_total_flops() / COUNTED
