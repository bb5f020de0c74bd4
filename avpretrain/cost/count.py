"""Floating-point operations, counted by running a model on the meta device, which knows shapes and computes nothing.

Counted are matrix products (2 m n k each), by the formulas of `torch.utils.flop_counter`, with attention as plain
products. What kernels compute twice (flash attention recomputes its scores) is not counted, so that a number
means the same on every machine.

Of blocks of one shape that are given inputs of one shape, the first is counted and stands for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from avpretrain.config.schedules import Phase
from avpretrain.cost.flops import Flops
from avpretrain.nn.decoder import DecoderBlock
from avpretrain.nn.layers import Block

__all__ = ["count", "count_flops", "on_meta"]

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


_aten = torch.ops.aten
_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten.mm: lambda a, b: (a.shape[0], b.shape[1]),
    _aten.addmm: lambda _, a, b, **more: (a.shape[0], b.shape[1]),
    _aten.bmm: lambda a, b: (a.shape[0], a.shape[1], b.shape[2]),
    _aten.cat: lambda tensors, dim=0: _joined(tensors, dim),
    _aten.index: lambda x, ids: (
        (*ids[0].shape, *x.shape[1:]) if len(ids) == 1 and ids[0].dtype == torch.int64 else None
    ),
    _aten.slice_backward: lambda x, sizes, *more: tuple(sizes),
    _aten.stack: lambda tensors, dim=0: _stacked(tensors, dim),
    _aten.sum: lambda x, dims=None, keep=False, **more: _summed(x, dims, keep),
}
"""Operation to the shape of its result, from its arguments; none = torch is to say."""
_ELEMENTWISE = {_aten.add, _aten.sub, _aten.mul, _aten.div, _aten.cos, _aten.sin, _aten.empty_like, _aten.ones_like}
_ELEMENTWISE |= {_aten.gelu, _aten.gelu_backward, _aten.silu, _aten.silu_backward}
_ELEMENTWISE |= {_aten._safe_softmax, _aten._softmax_backward_data}
"""Operations whose result has the shape to which their operands broadcast."""


def _broadcast(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    sizes = zip_longest(*(reversed(x.shape) for x in tensors), fillvalue=1)
    return tuple(max(size) if min(size) else 0 for size in sizes)[::-1]


def _joined(tensors: list[Tensor], dim: int = 0) -> tuple[int, ...]:
    shape = list(tensors[0].shape)
    shape[dim] = sum(x.shape[dim] for x in tensors)
    return tuple(shape)


def _summed(x: Tensor, dims: list[int] | None, keep: bool) -> tuple[int, ...]:
    gone = {dim % x.ndim for dim in (dims or range(x.ndim))} if x.ndim else set()
    return tuple(1 if dim in gone else size for dim, size in enumerate(x.shape) if keep or dim not in gone)


def _stacked(tensors: list[Tensor], dim: int = 0) -> tuple[int, ...]:
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return tuple(shape)


class _MetaCounter(TorchDispatchMode):
    """Counts on the meta device as `FlopCounterMode` does, in a tenth of the time.

    Torch works out most shapes in Python, and imports its compiler and sympy for it, which costs as much as torch
    itself; so shapes of products and of what goes element by element are given here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a version that asks would import the compiler to switch it off

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        operands = list(_tensors(args))
        shape: tuple[int, ...] | None = None
        out: Any
        if packet in _SHAPES and operands[0].dtype == torch.float32 and "dtype" not in kwargs:
            shape = _SHAPES[packet](*args, **kwargs)
        elif packet in _ELEMENTWISE and all(x.dtype == kwargs.get("dtype", x.dtype) == torch.float32 for x in operands):
            shape = _broadcast(operands)
        if shape is not None:
            out = operands[0].new_empty(shape)
        elif packet is _aten.add_:
            out = args[0]
        elif packet is _aten.native_layer_norm:
            rows = args[0].shape[: -len(args[1])]
            out = tuple(args[0].new_empty(size) for size in (args[0].shape, rows, rows))
        elif packet is _aten.native_layer_norm_backward:
            out = tuple(x if x is None else x.new_empty(x.shape) for x in (args[0], *args[5:7]))
        else:
            out = func(*args, **kwargs)
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


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
        forward = counter.total
        if outputs:
            torch.stack([x.sum() for x in outputs]).sum().backward()
    total = Flops(forward, counter.total - forward)
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
        except (
            NotImplementedError,
            RuntimeError,
            TypeError,
        ):  # torch's words for "no meta kernel", "no value", "no array"
            model, batch = build(), example(phase, COUNTED, torch.device("cpu"))
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                model(batch, phase)["loss"].backward()
            return counter.get_total_flops() / COUNTED


@contextmanager
def _counting() -> Iterator[_MetaCounter]:
    with _MetaCounter() as counter, sdpa_kernel(SDPBackend.MATH):
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
                if other.requires_grad:  # the backward pass continues to whatever made it
                    x = x + other.sum()
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
            forward = counter.total
            if output.requires_grad:
                output.sum().backward()
        _known[key] = Flops(forward, counter.total - forward)
    return _known[key]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
