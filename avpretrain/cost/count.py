"""Floating-point operations, counted by running a model on the meta device, which knows shapes and computes nothing.

Counted are matrix products (2 m n k each), as `torch.utils.flop_counter.FlopCounterMode` counts them, with attention as
plain products. What kernels compute twice (flash attention recomputes its scores) is not counted, so that a number
means the same on every machine.

Of blocks of one shape that are given inputs of one shape, the first is counted and stands for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from avpretrain.config.schedules import Phase
from avpretrain.cost.flops import Flops
from avpretrain.nn.decoder import DecoderBlock
from avpretrain.nn.layers import Block

COUNTED = 2
"""Samples in the batch that is counted."""
REPEATED = (Block, DecoderBlock)
"""Modules that come many times in a model; their output has the shape of their first input."""
META = torch.device("meta")


class _NoInit(TorchFunctionMode):
    """Leaves parameters as they are: on the meta device torch takes long to initialise nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes, without memory and without values."""
    with META, _NoInit():
        module = build()
    return module.to(META)  # what insists on the CPU follows


def count(module: nn.Module, call: Callable[[], Any]) -> Flops:
    """FLOPs of `call()`, which runs `module` on the meta device, and of the backward pass from all that it returns."""
    blocks: list[_Call] = []
    with _blocks_recorded(module, blocks), _counting() as counter:
        outputs = [x for x in _tensors(call()) if x.requires_grad]
        forward = counter.get_total_flops()
        if outputs:
            torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])
    total = Flops(forward, counter.get_total_flops() - forward)
    for block in blocks:
        total += _block_flops(*block)
    return total


def count_flops(
    build: Callable[[], nn.Module], example: Callable[[Phase, int, torch.device], Any], phase: Phase
) -> float:
    """FLOPs of training on one sample, forward and backward.

    The model is built and run on the meta device; one that asks for values runs on the CPU.

    Args:
        build: makes the model; `forward(batch, phase)` returns losses.
        example: a batch of so many samples on a device.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            model = on_meta(build)
            with META:
                batch = example(phase, COUNTED, META)
            return count(model, lambda: model(batch, phase)["loss"]).training / COUNTED
        except (NotImplementedError, RuntimeError):
            model, batch = build(), example(phase, COUNTED, torch.device("cpu"))
            with _counting() as counter:
                model(batch, phase)["loss"].backward()
            return counter.get_total_flops() / COUNTED


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


_Call = tuple[nn.Module, tuple[Any, ...], bool]
"""A block, what it was called with, and whether gradients were wanted."""


@contextmanager
def _blocks_recorded(module: nn.Module, calls: list[_Call]) -> Iterator[None]:
    """Blocks of the module note how they are called, and hand on their first input."""

    def stand_in(block: nn.Module) -> Callable[..., Tensor]:
        def forward(x: Tensor, *args: Any) -> Tensor:
            calls.append((block, (x, *args), torch.is_grad_enabled()))
            for other in _tensors(args):
                if other.requires_grad:  # the backward pass goes on to whatever made it
                    x = x + other.mean()
            return x

        return forward

    blocks = [block for block in module.modules() if isinstance(block, REPEATED)]
    for block in blocks:
        block.forward = stand_in(block)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


_known: dict[Any, Flops] = {}


def _block_flops(block: nn.Module, args: tuple[Any, ...], training: bool) -> Flops:
    inputs = [None if x is None else (tuple(x.shape), x.requires_grad) for x in args]
    heads = [getattr(part, "heads", None) for part in block.modules()]  # no weight tells their number
    shapes = [(name, tuple(p.shape), p.requires_grad) for name, p in block.named_parameters()]
    key = (type(block), str((shapes, heads, inputs)), training)
    if key not in _known:
        fresh = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in args]
        with torch.set_grad_enabled(training), _counting() as counter:
            output = block(*fresh)
            forward = counter.get_total_flops()
            if output.requires_grad:
                output.backward(torch.empty_like(output))
        _known[key] = Flops(forward, counter.get_total_flops() - forward)
    return _known[key]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
