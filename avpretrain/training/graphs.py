"""A training step as one CUDA graph: captured once a phase, then replayed by a single call.

Most steps of small models cost the processor more time to launch than the GPU to compute. All that changes from step to
step is in the batch or in tensors that the graph reads (learning rate, step index), so a replay does what the step did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from avpretrain.batch import AVBatch

Update = Callable[[AVBatch, float, float], dict[str, Tensor]]
"""A whole training step at an audio and a video masking ratio; what it returns stays on the device."""
WARM_UP, WARM_UP_RANKS = 3, 12
"""Steps of a phase that run uncaptured, on one rank and on several: kernels compile, and DDP settles its buckets."""


class PhaseGraphs:
    """Calls `update`; from the second handful of steps of a phase on, by replaying a CUDA graph of it.

    A phase is a pair of masking ratios and a batch size. Every call is a real training step, the first ones too. The
    graph of a phase is dropped when the next phase begins; their memory is one pool.

    Args:
        update: reads no number from the device, and draws no numbers from torch's generators.
        stream: on which `update` runs, captured or not; DDP must have been built on it.
        warm_up: steps before the capture.
    """

    def __init__(self, update: Update, stream: torch.cuda.Stream, warm_up: int) -> None:
        self.update, self.stream, self.warm_up = update, stream, warm_up
        self._pool = torch.cuda.graph_pool_handle()
        self._phase: tuple[float, float, int] | None = None
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: AVBatch | None = None
        self._outputs: dict[str, Tensor] = {}

    def __call__(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> dict[str, Tensor]:
        """One step. What it returns is overwritten by the next call."""
        phase = audio_ratio, video_ratio, len(batch)
        if phase != self._phase:
            self._phase, self._steps = phase, 0
            self._graph, self._inputs, self._outputs = None, None, {}
        self._steps += 1
        if self._steps <= self.warm_up:
            return self._uncaptured(batch, audio_ratio, video_ratio)
        if self._graph is None:
            self._capture(batch, audio_ratio, video_ratio)
        assert self._graph is not None and self._inputs is not None
        _copy(batch, self._inputs)
        self._graph.replay()
        return self._outputs

    def _uncaptured(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> dict[str, Tensor]:
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            outputs = self.update(batch, audio_ratio, video_ratio)
        here.wait_stream(self.stream)
        return outputs

    def _capture(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> None:
        self._inputs = AVBatch(**{f.name: getattr(batch, f.name).clone() for f in fields(AVBatch)})
        graph = torch.cuda.CUDAGraph()
        # Other threads (checkpoints, pinning) may call CUDA meanwhile.
        how: dict[str, Any] = {"pool": self._pool, "stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, **how):  # it empties the cache first
            self._outputs = self.update(self._inputs, audio_ratio, video_ratio)
        self._graph = graph


def _copy(batch: AVBatch, into: AVBatch) -> None:
    for field in fields(AVBatch):
        getattr(into, field.name).copy_(getattr(batch, field.name))
