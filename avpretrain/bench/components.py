"""Where the time of a training step goes: seconds of each component, forward and backward together.

A mark is set wherever the work passes from one component to another: by hooks around the modules in the forward pass,
by functions that do nothing else in the backward pass. On a GPU marks are events in its stream, so that nothing waits.
Autograd goes back in the reverse order of the forward pass, so that each component's part stays in one piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from avpretrain.data.batch import AVBatch
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import SIDES, DiffMAViL
from avpretrain.training.bare_step import BareStep

REST = "masks_noise_losses"
"""What no module does: patchifying, masks, noise, gathering, losses."""
COMPONENTS = (
    "patches",
    "audio_encoder",
    "video_encoder",
    "fusion",
    "audio_decoder",
    "video_decoder",
    REST,
    "optimizer",
)


class Marks:
    """Moments at which work passes to a component."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []
        self._open = [REST]

    def at(self, name: str) -> None:
        """From here on the work is `name`'s."""
        if self.device.type == "cuda":
            stamp: Any = torch.cuda.Event(enable_timing=True)
            stamp.record()
        else:
            stamp = time.perf_counter()
        self._marks.append((name, stamp))

    def enter(self, name: str) -> None:
        """`name` begins inside whatever is at work; forward pass only."""
        self._open.append(name)
        self.at(name)

    def leave(self) -> None:
        """The innermost component ends, and the work goes back to the one around it."""
        self._open.pop()
        self.at(self._open[-1])

    def seconds(self) -> dict[str, float]:
        """Seconds by component up to the last mark; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = dict.fromkeys(COMPONENTS, 0.0)
        for (name, started), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            spent[name] += started.elapsed_time(ended) / 1e3 if self.device.type == "cuda" else ended - started
        return spent


class _Mark(torch.autograd.Function):
    """The identity, which calls `said` when the backward pass comes by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, said: Callable[[], None]) -> Tensor:
        ctx.said = said
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.said()
        return gradients[0], None


def _marked(value: Any, said: Callable[[], None]) -> Any:
    if isinstance(value, tuple):
        return tuple(_marked(item, said) for item in value)
    return _Mark.apply(value, said) if isinstance(value, Tensor) and value.requires_grad else value


def watch(module: nn.Module, name: str, marks: Marks) -> AbstractContextManager[object]:
    """Charges what `module` does, forward and backward, to `name` within the block that it opens."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        marks.enter(name)
        return _marked(args, lambda: marks.at(REST))  # the backward pass leaves a module by its inputs

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        marks.leave()
        return _marked(output, lambda: marks.at(name))

    stack = ExitStack()
    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after).remove)
    return stack


def parts(model: DiffMAViL) -> list[tuple[nn.Module, str]]:
    """Modules of a model with the component that each is charged to."""
    embeds: list[tuple[nn.Module, str]] = [(model.tower(side).encoder.patch_embed, "patches") for side in SIDES]
    return [*embeds, *((module, name) for name, module in model.parts().items())]


def component_seconds(bare: BareStep, batch: AVBatch, ratios: MaskRatios, repeats: int) -> dict[str, float]:
    """Mean seconds of each of `COMPONENTS` in a training step; they add up to the whole step.

    Args:
        repeats: steps that count, after one that does not.
    """
    sums = dict.fromkeys(COMPONENTS, 0.0)
    for repeat in range(repeats + 1):
        marks = Marks(bare.device)
        with ExitStack() as stack:
            for module, name in parts(cast(DiffMAViL, bare.model)):
                stack.enter_context(watch(module, name, marks))
            marks.at(REST)
            losses = bare.losses(batch, ratios)
            losses["loss"].backward()
            marks.at("optimizer")
            bare.update()
            marks.at(REST)
        for name, seconds in marks.seconds().items():
            sums[name] += seconds if repeat else 0.0
    return {name: total / repeats for name, total in sums.items()}
