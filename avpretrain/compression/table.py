"""The experiment: a small MobileNetV1 trained on spoken digits, compressed in every way, measured.

Images are log-mel spectrograms of 64 bins and 64 frames, standardised. Activations stay float32 in the tables of bits
and sparsity; the int8 ONNX rows have activations of 8 bits, too.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avpretrain.compression.inputs import (
    IndependentInputs,
    InputMoments,
    PropagatedInputs,
    RealInputs,
    layers_of,
)
from avpretrain.compression.networks import MobileNetV1
from avpretrain.compression.precondition import absorb_bias, equalise, fold_batchnorm
from avpretrain.compression.quantiser import min_max_grid
from avpretrain.compression.solve import prune, quantise
from avpretrain.core.errors import UserError
from avpretrain.data.features import log_mel

SIZE = 64
SAMPLE_RATE = 16_000
CALIBRATION = 1024
BITS = (8, 6, 5, 4)
SPARSITIES = (0.3, 0.5, 0.7, 0.9)


def _each(net: nn.Module, change: Callable[[str, nn.Linear | nn.Conv2d], Any]) -> nn.Module:
    """A copy whose layers have the weights and biases that `change` gives."""
    small = copy.deepcopy(net)
    for name, layer in layers_of(small).items():
        solution = change(name, layer)
        layer.weight = nn.Parameter(solution.weight)
        layer.bias = nn.Parameter(solution.bias)
    return small


def measure(
    net: nn.Module, calibration_N1HW: Tensor, test_N1HW: Tensor, class_N: Tensor, seed: int, steps: int = 100
) -> list[dict[str, Any]]:
    """Rows of the tables: what was done, bits or sparsity, grid, accuracy, seconds of compression.

    Args:
        net: trained, in evaluation mode, with its norms.
        steps: of the solver by gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    noise_N1HW = torch.randn(256, *test_N1HW.shape[1:], generator=generator)
    folded = copy.deepcopy(net)
    missed = fold_batchnorm(folded)
    if missed:
        raise UserError(f"a norm can't be folded: {missed[0]}")
    equal = copy.deepcopy(folded)
    equalise(equal)
    ready = copy.deepcopy(equal)
    absorb_bias(ready)
    independent = IndependentInputs().moments(ready)[0]
    propagated = PropagatedInputs([lambda m: m(noise_N1HW)]).moments(ready)[0]
    real = RealInputs([lambda m: m(calibration_N1HW)]).moments(ready)[0]
    rows: list[dict[str, Any]] = [{"table": "full", "accuracy": accuracy(net, test_N1HW, class_N)}]

    def add(small: Callable[[], nn.Module], **what: Any) -> None:
        start = time.perf_counter()
        made = small()
        seconds = time.perf_counter() - start
        rows.append({**what, "accuracy": accuracy(made, test_N1HW, class_N), "seconds": seconds})

    def bits_row(
        method: str, source: nn.Module, found: dict[str, InputMoments] | None, bits: int, per_channel: bool
    ) -> None:
        def change(name: str, layer: nn.Linear | nn.Conv2d) -> Any:
            inputs = None if found is None else found[name]
            grid = min_max_grid(layer.weight, bits, per_channel) if method == "dfq" else None
            solver: Any = "naive" if found is None else "ste" if method in ("propagated", "real") else "closed"
            return quantise(layer.weight, layer.bias, inputs, bits, per_channel, solver, steps, grid)

        kind = "per channel" if per_channel else "per tensor"
        add(lambda: _each(source, change), table="bits", method=method, bits=bits, grid=kind)

    for bits in BITS:
        for per_channel in (False, True):
            bits_row("naive", folded, None, bits, per_channel)
            bits_row("equalise", equal, None, bits, per_channel)
            bits_row("dfq", ready, independent, bits, per_channel)
            bits_row("independent", ready, independent, bits, per_channel)
            bits_row("propagated", ready, propagated, bits, per_channel)
            bits_row("real", ready, real, bits, per_channel)

    def pruned_row(
        method: str, source: nn.Module, found: dict[str, InputMoments] | None, reoptimise: bool, sparsity: float
    ) -> None:
        def change(name: str, layer: nn.Linear | nn.Conv2d) -> Any:
            inputs = None if found is None else found[name]
            return prune(layer.weight, layer.bias, inputs, sparsity, reoptimise=reoptimise)

        add(lambda: _each(source, change), table="sparsity", method=method, sparsity=sparsity)

    for sparsity in SPARSITIES:
        pruned_row("magnitude", folded, None, False, sparsity)
        pruned_row("independent", ready, independent, False, sparsity)
        pruned_row("propagated", ready, propagated, True, sparsity)
        pruned_row("real", ready, real, True, sparsity)
    return rows


def run(folder: Path, seeds: int = 1, epochs: int = 8, width: float = 0.25, steps: int = 100) -> dict[str, Any]:
    """Trains and measures one network a seed; see `measure`. Raises: UserError: there are no recordings."""
    image_N1HW, class_N, test_N = digits(folder)
    rows: list[dict[str, Any]] = []
    parameters = 0
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = MobileNetV1(10, width, channels=1)
        parameters = sum(p.numel() for p in net.parameters())
        train(net, image_N1HW[~test_N], class_N[~test_N], epochs, seed)
        ids = torch.randperm(int((~test_N).sum()), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
        found = measure(net, image_N1HW[~test_N][ids], image_N1HW[test_N], class_N[test_N], seed, steps)
        rows += [{"seed": seed, **row} for row in found]
    return {
        "network": f"MobileNetV1, width {width}", "parameters": parameters, "data": "FSDD, 64 x 64 log-mel",
        "train_clips": int((~test_N).sum()), "test_clips": int(test_N.sum()), "epochs": epochs, "seeds": seeds,
        "ste_steps": steps, "activations": "float32", "calibration_clips": CALIBRATION, "rows": rows,
    }  # fmt: skip
