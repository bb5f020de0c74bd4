"""Steps before compression that leave the function as it is: BatchNorm folded, ranges equalised, biases absorbed.

O output and I input channels of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avpretrain.compression.walk import Layer, OutputStats, find_edges, trace

ABSORBED_STDS = 3.0
"""Bias that lies this many standard deviations above zero is absorbed."""


def fold_batchnorm(model: nn.Module) -> list[str]:
    """Folds every BatchNorm into the layer before it, in place; returns what could not be folded, a line each.

    Where it stood is an `OutputStats` with the distribution that the norm gave.
    """
    modules, missed = dict(model.named_modules()), []
    graph = trace(model)
    calls = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    for node in graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            continue
        source = node.args[0]
        layer = modules.get(str(source.target)) if source.op == "call_module" else None
        if not isinstance(layer, Layer) or len(source.users) != 1 or calls.count(str(source.target)) != 1:
            missed.append(f"{node.target}: no linear layer or convolution of its own before it")
            continue
        if norm.running_mean is None or norm.running_var is None:
            missed.append(f"{node.target}: keeps no running statistics")
            continue
        weight = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight.detach()
        shift = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias.detach()
        factor_O = weight / torch.sqrt(norm.running_var + norm.eps)
        bias_O = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach()
        layer.weight.data = layer.weight.data * along_output(factor_O, layer.weight)
        layer.bias = nn.Parameter((bias_O - norm.running_mean) * factor_O + shift)
        parent, _, name = str(node.target).rpartition(".")
        setattr(model.get_submodule(parent), name, OutputStats(shift.clone(), weight.abs().clone()))
    return missed


def relu6_to_relu(model: nn.Module) -> int:
    """Replaces ReLU6 modules by ReLU, which scaling passes through; it changes the function. Returns how many."""
    count = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU(inplace=child.inplace))
                count += 1
    return count


def equalise(model: nn.Module, rounds: int = 40, tolerance: float = 1e-4) -> list[str]:
    """Cross-layer equalisation over edges with ReLU or no activation, in place; returns what was left out.

    Scales each channel between two layers until both use it over the same range; repeats until no factor is further
    from 1 than `tolerance`.
    """
    edges, missed = find_edges(model)
    modules, used = dict(model.named_modules()), []
    for edge in edges:
        second = modules[edge.second]
        if edge.activation not in (None, "relu"):
            missed.append(f"{edge.first}: scaling does not pass through {edge.activation}")
        elif input_ranges(second) is None:
            missed.append(f"{edge.second}: a convolution of groups that is not depthwise")
        else:
            used.append(edge)
    for _ in range(rounds):
        largest = 0.0
        for edge in used:
            first, second = modules[edge.first], modules[edge.second]
            r1_C = first.weight.detach().flatten(1).abs().amax(dim=1)
            r2_C = input_ranges(second)
            assert r2_C is not None
            if len(r1_C) != len(r2_C):  # flattened space lies between
                continue
            live_C = (r1_C > 1e-8) & (r2_C > 1e-8)
            s_C = torch.where(live_C, torch.sqrt(r2_C / r1_C.clamp(min=1e-12)), 1.0)
            first.weight.data *= along_output(s_C, first.weight)
            if first.bias is not None:
                first.bias.data *= s_C
            second.weight.data /= along_input(s_C, second)
            if edge.stats is not None:
                modules[edge.stats].mean *= s_C
                modules[edge.stats].std *= s_C
            largest = max(largest, float((s_C - 1).abs().max()))
        if largest < tolerance:
            break
    return missed


def absorb_bias(model: nn.Module) -> list[str]:
    """Moves bias that a ReLU hardly ever clips into the layer after it, in place; returns what was left out.

    Exact but for inputs below the mean minus three standard deviations. A convolution with padding takes no bias: at
    the border, which in small maps is all there is, some taps see zeros and would miss their share of it.
    """
    edges, missed = find_edges(model)
    modules = dict(model.named_modules())
    for edge in edges:
        first, second = modules[edge.first], modules[edge.second]
        ranges = input_ranges(second)
        if edge.activation != "relu" or edge.stats is None or ranges is None:
            continue
        stats = modules[edge.stats]
        excess_C = (stats.mean - ABSORBED_STDS * stats.std).clamp(min=0)
        if len(ranges) != len(excess_C) or not bool(excess_C.any()):
            continue
        if isinstance(second, nn.Conv2d) and any(p != 0 for p in second.padding):
            missed.append(f"{edge.second}: absorbs no bias, for it pads with zeros")
            continue
        first.bias.data -= excess_C
        stats.mean -= excess_C
        taps = second.weight.detach().flatten(2).sum(dim=2) if second.weight.ndim > 2 else second.weight.detach()
        depthwise = second.weight.ndim > 2 and second.groups > 1
        moved_O = taps[:, 0] * excess_C if depthwise else taps @ excess_C
        second.bias = nn.Parameter(moved_O + (0 if second.bias is None else second.bias.detach()))
    return missed


def along_output(factor_O: Tensor, weight: Tensor) -> Tensor:
    """[O] in the shape that multiplies a weight [O, ...]."""
    return factor_O.reshape(-1, *[1] * (weight.ndim - 1))


def along_input(factor_I: Tensor, layer: nn.Module) -> Tensor:
    """[I] in the shape that multiplies a layer's weight by input channel."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return along_output(factor_I, weight)
    return factor_I.reshape(1, -1, *[1] * (weight.ndim - 2))


def input_ranges(layer: nn.Module) -> Tensor | None:
    """[I], largest absolute weight of each input channel; none = groups that are neither one nor one a channel."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        return weight.flatten(1).abs().amax(dim=1) if depthwise else None
    return weight.abs().transpose(0, 1).flatten(1).amax(dim=1)
