"""A training step as one CUDA graph: captured once a phase, then replayed by a single call.

Most steps of small models cost the processor more time to launch than the GPU to compute. All that changes from step to
step is in the batch or in tensors that the graph reads (learning rate, step index), so a replay does what the step did.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from avpretrain.config.schedules import Phase
from avpretrain.core.errors import UserError
from avpretrain.core.tensors import leaves_of, map_tensors, tensors_of
from avpretrain.core.terminal import plain

Update = Callable[[Any, Phase], dict[str, Tensor]]
"""A whole training step on a batch; what it returns stays on the device."""
WARM_UP, WARM_UP_RANKS = 3, 12
"""Steps of a phase that run uncaptured, on one rank and on several: kernels compile, and DDP settles its buckets."""


class PhaseGraphs:
    """Calls `update`; from the second handful of steps of a phase on, by replaying a CUDA graph of it.

    Every call is a real training step, the first ones too. The graph of a phase is dropped when the next phase begins;
    their memory is one pool. Batches of a phase must agree in all but the values of their tensors (see `form_of`):
    where they do not, steps run uncaptured from there on, and a line on stderr says so.

    Args:
        update: reads no number from the device, and all that changes from step to step reaches it in tensors.
        stream: on which `update` runs, captured or not; DDP must have been built on it.
        warm_up: steps before the capture.
    """

    def __init__(self, update: Update, stream: torch.cuda.Stream, warm_up: int) -> None:
        self.update, self.stream, self.warm_up = update, stream, warm_up
        self._pool = torch.cuda.graph_pool_handle()
        self._phase: tuple[Phase, int] | None = None
        self._form: list[Any] = []
        self._steps = 0
        self._varied = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Any = None
        self._outputs: dict[str, Tensor] = {}

    def __call__(self, batch: Any, phase: Phase) -> dict[str, Tensor]:
        """One step. What it returns is overwritten by the next call.

        Raises:
            UserError: it can't be captured.
        """
        form = form_of(batch)
        if (phase, len(batch)) != self._phase:
            self._phase, self._form, self._steps = (phase, len(batch)), form, 0
            self._drop()
        elif form != self._form and not self._varied:
            new, old = next((new, old) for new, old in zip_longest(form, self._form) if new != old)
            differ = f"batches of one phase differ ({_said(new)} after {_said(old)})"
            print(plain(f"avpretrain: {differ}; steps are not captured as CUDA graphs from here on"), file=sys.stderr)
            self._varied = True
            self._drop()
        self._steps += 1
        if self._varied or self._steps <= self.warm_up:
            return self._uncaptured(batch, phase)
        if self._graph is None:
            self._capture(batch, phase)
        assert self._graph is not None
        for source, target in zip(tensors_of(batch), tensors_of(self._inputs), strict=True):
            target.copy_(source)
        self._graph.replay()
        return self._outputs

    def close(self) -> None:
        """Lets go of the graph: a process group that a living graph still refers to never ends (seen with NCCL).

        The next call captures anew. A failed device raises no second error here.
        """
        if self._graph is None:
            return
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize()
        self._drop()

    def _drop(self) -> None:
        self._graph, self._inputs, self._outputs = None, None, {}

    def _uncaptured(self, batch: Any, phase: Phase) -> dict[str, Tensor]:
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            outputs = self.update(batch, phase)
        here.wait_stream(self.stream)
        return outputs

    def _capture(self, batch: Any, phase: Phase) -> None:
        self._inputs = map_tensors(batch, Tensor.clone)
        graph = torch.cuda.CUDAGraph()
        # Other threads (checkpoints, pinning) may call CUDA meanwhile.
        how: dict[str, Any] = {"pool": self._pool, "stream": self.stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, **how):  # it empties the cache first
                self._outputs = self.update(self._inputs, phase)
        except RuntimeError as error:
            first = first_cause(error)
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            reason = str(first).strip().partition("\n")[0]
            raise UserError(
                f"a step could not be captured as a CUDA graph: {reason}; set run.cuda_graphs never (the same command "
                "with it resumes from the last checkpoint)"
            ) from error
        self._graph = graph


def first_cause(error: BaseException) -> BaseException:
    """What was raised first, where errors followed on one another: out of memory before all, if it is among them."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    return next((e for e in chain if isinstance(e, torch.OutOfMemoryError)), chain[-1])


def form_of(batch: Any) -> list[Any]:
    """What a graph of a batch fixes: shape and type of its tensors, and its plain numbers, in order.

    Text is left out: names of samples differ from batch to batch, and nothing is computed from them.
    """
    return [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves_of(batch)]


def _said(part: Any) -> str:
    """A part of a batch's form in words."""
    return f"{list(part[0])} {str(part[1]).removeprefix('torch.')}" if isinstance(part, tuple) else str(part)
