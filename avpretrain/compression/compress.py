"""A whole network made small, layer by layer, each alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from avpretrain.compression.inputs import InputMoments, layers_of
from avpretrain.compression.quantiser import IDENTITY_BITS, QuantGrid, check_bits, min_max_grid
from avpretrain.compression.solve import Solver, check_sparsity, is_prunable, prune, quantise
from avpretrain.core.errors import UsageError

EMBEDDING_BITS = 8
"""Of a value of an embedding, at least: in small language models it is also the last layer, which is not forgiving."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to each layer: quantised or pruned, one of the two.

    Raises:
        UsageError: both or neither, or a value is out of range.
    """

    bits: int | None = None
    sparsity: float | None = None
    per_channel: bool = True
    solver: Solver = "closed"

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.sparsity is None):
            raise UsageError("name one of --bits 8|6|4 and --sparsity S")
        if self.bits is not None:
            check_bits(self.bits)
        if self.sparsity is not None:
            check_sparsity(self.sparsity)


@dataclass(frozen=True)
class Compressed:
    """What was done. Args: layers: by name; missed: what was left as it was and why; grids: by the weight's name."""

    layers: dict[str, dict[str, Any]]
    missed: list[str]
    grids: dict[str, QuantGrid] = field(default_factory=dict)


@torch.no_grad()
def compress(
    model: nn.Module,
    plan: Plan,
    inputs: Mapping[str, InputMoments],
    missed: Collection[str] = (),
    unknown_too: bool = False,
    new_biases: bool = True,
) -> Compressed:
    """Changes the weights and biases of the model's layers in place.

    An embedding is rounded to `EMBEDDING_BITS` at least, with a grid for each row; pruning leaves it as it is, and also
    layers whose outputs have few inputs.

    Args:
        inputs: what layers are fed, by name.
        missed: what the finder of `inputs` could not handle; it is passed on.
        new_biases: layers without a bias may get one; otherwise the model keeps its parameters' names and shapes.
        unknown_too: compress also layers whose input is not known: by rounding, or by magnitude.
    """
    done: dict[str, dict[str, Any]] = {}
    grids: dict[str, QuantGrid] = {}
    left = list(missed)
    for name, layer in layers_of(model).items():
        known = inputs.get(name)
        if known is None and not unknown_too:
            if not any(line.startswith(f"{name}:") for line in left):
                left.append(f"{name}: its input is not known")
            continue
        if known is not None and layer.bias is None and not new_biases:
            known = known.about_zero()
        if plan.bits is not None:
            with torch.enable_grad():
                solution = quantise(layer.weight, layer.bias, known, plan.bits, plan.per_channel, plan.solver)
            plain = quantise(layer.weight, layer.bias, known, plan.bits, plan.per_channel, "naive")
            if solution.grid is not None and plan.bits < IDENTITY_BITS:
                grids[f"{name}.weight"] = solution.grid
        else:
            assert plan.sparsity is not None
            if not is_prunable(layer):
                left.append(f"{name}: stays dense, with {layer.weight[0].numel()} inputs to an output")
                continue
            reoptimise = plan.solver != "naive"
            solution = prune(layer.weight, layer.bias, known, plan.sparsity, reoptimise=reoptimise)
            plain = prune(layer.weight, layer.bias, known, plan.sparsity, "magnitude", reoptimise=False)
        layer.weight.copy_(solution.weight)
        if layer.bias is not None:
            layer.bias.copy_(solution.bias)
        elif bool(solution.bias.any()) and known is not None and plan.solver != "naive" and new_biases:
            layer.bias = nn.Parameter(solution.bias)
        done[name] = {
            "weights": layer.weight.numel(),
            "zeros": int((layer.weight == 0).sum()),
            "input": "not known" if known is None else known.source,
            "error": None if known is None else solution.error,
            "error_naive": None if known is None else plain.error,
        }
    for name, table in model.named_modules():
        if isinstance(table, nn.Embedding):
            if plan.bits is None:
                left.append(f"{name}: an embedding; it stays dense")
                continue
            grid = min_max_grid(table.weight, max(plan.bits, EMBEDDING_BITS), per_channel=True)
            table.weight.copy_(grid.quantise(table.weight))
            if grid.bits < IDENTITY_BITS:
                grids[f"{name}.weight"] = grid
            done[name] = {
                "weights": table.weight.numel(), "zeros": int((table.weight == 0).sum()), "bits": grid.bits,
                "input": "rows are looked up", "error": None, "error_naive": None,
            }  # fmt: skip
    return Compressed(done, left, grids)
