"""Transformers: which linear layers a norm feeds, and ranges equalised between the two.

D width of a norm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from avpretrain.compression.walk import removed
from avpretrain.nn.rms_norm import RMSNorm

Norm = nn.LayerNorm | nn.RMSNorm | RMSNorm
"""A norm over the last axis, with a weight and perhaps a bias."""
SPREAD = 3.0
"""A norm's channel is taken to reach this many of its deviations from its mean."""


@torch.no_grad()
def fed_by_norms(model: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, list[str]]:
    """Linear layers that are called with a norm's output itself, by the norm's name, in order of one call.

    What else takes that output, if anything does, is not seen.
    """
    names = {module: name for name, module in model.named_modules()}
    outputs: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, list[str]] = {}

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and id(args[0]) in outputs:
            linears = found.setdefault(outputs[id(args[0])][0], [])
            if names[module] not in linears:
                linears.append(names[module])

    def after(module: nn.Module, _: tuple[Any, ...], out: Tensor) -> None:
        outputs[id(out)] = names[module], out  # kept, so that no other tensor takes its id

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                stack.enter_context(removed(module.register_forward_pre_hook(before)))
            if isinstance(module, Norm) and module.weight is not None:
                stack.enter_context(removed(module.register_forward_hook(after)))
        run(model)
    return found


@torch.no_grad()
def equalise_norms(model: nn.Module, run: Callable[[nn.Module], Any], tolerance: float = 1e-5) -> list[str]:
    """Scales each channel between a norm and the linear layers it feeds until both have the same range, in place.

    The function stays as it is where nothing else takes the norm's output. That is checked by a call before and after:
    a norm whose scaling moves the output is put back.

    Args:
        run: calls the network, and returns its output: a tensor, or several.
        tolerance: relative change of the output that rounding may cause.

    Returns:
        What was left as it is, a line each.
    """
    before = _flat(run(model))
    pairs = fed_by_norms(model, run)
    old = {norm: _apply(model, norm, linears) for norm, linears in pairs.items()}
    if _change(_flat(run(model)), before) <= tolerance:
        return []
    for weights in old.values():
        _put_back(weights)
    missed = []
    for norm, linears in pairs.items():
        weights = _apply(model, norm, linears)
        if _change(_flat(run(model)), before) > tolerance:
            _put_back(weights)
            missed.append(f"{norm}: its output goes elsewhere than into {', '.join(linears)}; not equalised")
    return missed


def _apply(model: nn.Module, norm: str, linears: list[str]) -> list[tuple[Tensor, Tensor]]:
    """Scales by the root of the ranges' ratio; returns each tensor that it changed with what was in it."""
    module = model.get_submodule(norm)
    bias = getattr(module, "bias", None)
    gains = [_weight(module), *([] if bias is None else [bias.data])]
    weights = [_weight(model.get_submodule(name)) for name in linears]
    old = [(tensor, tensor.clone()) for tensor in (*gains, *weights)]
    first_D = SPREAD * gains[0].abs() + (gains[1].abs() if bias is not None else 0)
    second_D = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    live_D = (first_D > 1e-8) & (second_D > 1e-8)
    s_D = torch.where(live_D, torch.sqrt(second_D / first_D.clamp(min=1e-12)), 1.0)
    s_D = s_D / s_D.log().mean().exp()
    for tensor in gains:
        tensor.mul_(s_D)
    for tensor in weights:
        tensor.div_(s_D)
    return old


def _put_back(weights: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, old in weights:
        tensor.copy_(old)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight.data


def _flat(output: Any) -> Tensor:
    parts = [output] if isinstance(output, Tensor) else list(output)
    return torch.cat([part.detach().float().flatten() for part in parts])


def _change(after: Tensor, before: Tensor) -> float:
    return float((after - before).norm() / before.norm().clamp(min=1e-12))
