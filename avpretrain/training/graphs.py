"""A training step as one CUDA graph: captured once a phase, then replayed by a single call.

Most steps of small models cost the processor more time to launch than the GPU to compute. All that changes from step to
step is in the batch or in tensors that the graph reads (learning rate, step index), so a replay does what the step did.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from avpretrain.config.schedules import Phase

Update = Callable[[Any, Phase], dict[str, Tensor]]
"""A whole training step on a batch; what it returns stays on the device."""
WARM_UP, WARM_UP_RANKS = 3, 12
"""Steps of a phase that run uncaptured, on one rank and on several: kernels compile, and DDP settles its buckets."""


class PhaseGraphs:
    """Calls `update`; from the second handful of steps of a phase on, by replaying a CUDA graph of it.

    Every call is a real training step, the first ones too. The graph of a phase is dropped when the next phase begins;
    their memory is one pool. Batches of a phase must have one shape: where they do not, steps run uncaptured from there
    on, and a line on stderr says so.

    Args:
        update: reads no number from the device, and draws no numbers from torch's generators.
        stream: on which `update` runs, captured or not; DDP must have been built on it.
        warm_up: steps before the capture.
    """

    def __init__(self, update: Update, stream: torch.cuda.Stream, warm_up: int) -> None:
        self.update, self.stream, self.warm_up = update, stream, warm_up
        self._pool = torch.cuda.graph_pool_handle()
        self._phase: tuple[Phase, int] | None = None
        self._shapes: list[torch.Size] = []
        self._steps = 0
        self._varied = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Any = None
        self._outputs: dict[str, Tensor] = {}

    def __call__(self, batch: Any, phase: Phase) -> dict[str, Tensor]:
        """One step. What it returns is overwritten by the next call."""
        shapes = [tensor.shape for tensor in tensors_of(batch)]
        if (phase, len(batch)) != self._phase:
            self._phase, self._shapes, self._steps = (phase, len(batch)), shapes, 0
            self._drop()
        elif shapes != self._shapes and not self._varied:
            print(
                f"avpretrain: batches of one phase differ in shape ({shapes} after {self._shapes}); steps are not "
                "captured as CUDA graphs from here on",
                file=sys.stderr,
            )
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
        """Lets go of the graph: a process group that a living graph still refers to never ends (seen with NCCL)."""
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
        with torch.cuda.graph(graph, **how):  # it empties the cache first
            self._outputs = self.update(self._inputs, phase)
        self._graph = graph


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors of a batch: one itself, or in dataclasses, dictionaries, lists and tuples of them."""
    if isinstance(batch, Tensor):
        yield batch
    elif dataclasses.is_dataclass(batch):
        for field in dataclasses.fields(batch):
            yield from tensors_of(getattr(batch, field.name))
    elif isinstance(batch, dict | list | tuple):
        for value in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors_of(value)


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch of the same kind with `change` of each of its tensors."""
    if isinstance(batch, Tensor):
        return change(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {field.name: map_tensors(getattr(batch, field.name), change) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **fields)
    if isinstance(batch, dict):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, change) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map_tensors(value, change) for value in batch)
    return batch
