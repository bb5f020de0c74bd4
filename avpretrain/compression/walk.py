"""The graph of a module that torch.fx can trace: which layer feeds which, through which norm and activation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from avpretrain.core.errors import UserError

Layer = nn.Linear | nn.Conv2d
"""What is compressed."""


class OutputStats(nn.Identity):
    """Stands where a folded BatchNorm was: passes values on, and keeps what their distribution is.

    Args:
        mean: [O], the BatchNorm's bias.
        std: [O], the absolute value of its weight.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)


class removed:  # noqa: N801
    """A hook's handle as a context."""

    def __init__(self, handle: RemovableHandle) -> None:
        self.handle = handle

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, OutputStats) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """The model's graph.

    Raises:
        UserError: torch.fx can't trace it.
    """
    try:
        return _Tracer().trace(model)
    except Exception as error:  # traced code is anyone's: whatever it raises, the graph can't be had
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{type(model).__name__} can't be traced by torch.fx: {reason}") from None


@dataclass(frozen=True)
class Edge:
    """`first` feeds `second` and nothing else does or is fed: layer, folded norm where there was one, activation."""

    first: str
    second: str
    stats: str | None
    activation: str | None


def find_edges(model: nn.Module) -> tuple[list[Edge], list[str]]:
    """Edges from layer to layer without a branch, and what stood in the way elsewhere, a line each."""
    modules, edges, missed = dict(model.named_modules()), [], []
    uses: dict[str, int] = {}
    graph = trace(model)
    for node in graph.nodes:
        if node.op == "call_module":
            uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], Layer):
            continue
        found, stats, activation, here = "", None, None, node
        while not found:
            followers = list(here.users)
            if len(followers) != 1:
                found = f"its output is used {len(followers)} times" if followers else "it is the last layer"
                break
            here = followers[0]
            module = modules.get(str(here.target)) if here.op == "call_module" else None
            if isinstance(module, Layer):
                if uses[str(node.target)] + uses[str(here.target)] > 2:
                    found = "a layer is used more than once"
                    break
                edges.append(Edge(str(node.target), str(here.target), stats, activation))
                break
            if isinstance(module, OutputStats) and activation is None:
                stats = str(here.target)
            elif kind := activation_of(here, module):
                if activation is not None:
                    found = "two activations follow it"
                activation = kind
            elif not _passes(here, module):
                found = f"{describe(here, module)} follows it"
        if found:
            missed.append(f"{node.target}: {found}")
    return edges, missed


_FUNCTIONS: dict[object, str] = {
    F.relu: "relu", torch.relu: "relu", F.relu6: "relu6", F.silu: "silu", F.gelu: "gelu", torch.sigmoid: "sigmoid",
    F.hardswish: "hardswish", F.hardsigmoid: "hardsigmoid",
}  # fmt: skip
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.GELU: "gelu", nn.Sigmoid: "sigmoid",
    nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid",
}  # fmt: skip
APPLY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "gelu": F.gelu, "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
}  # fmt: skip
ADDITIONS = (operator.add, operator.iadd, torch.add)
PRODUCTS = (operator.mul, operator.imul, torch.mul)


def activation_of(node: fx.Node, module: nn.Module | None) -> str | None:
    """The name of the activation that a node is, by `APPLY`; none = it is none that is known."""
    if node.op == "call_method":
        return str(node.target) if node.target in ("relu", "sigmoid") else None
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    return _MODULES.get(type(module)) if module is not None else None


def _passes(node: fx.Node, module: nn.Module | None) -> bool:
    return isinstance(module, nn.Dropout | nn.Identity) and not isinstance(module, OutputStats)


def describe(node: fx.Node, module: nn.Module | None) -> str:
    """What a node is, in a word."""
    if module is not None:
        return type(module).__name__
    return node.op if node.op == "output" else getattr(node.target, "__name__", str(node.target))
