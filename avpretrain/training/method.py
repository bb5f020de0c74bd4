"""What the engine knows of the thing that it trains.

The engine owns order, steps, learning rate, batches, checkpoints, resuming, preemption, trackers and cost. A method
owns its config's sections, its data, its model and its losses. How to add one: docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from safetensors.torch import save_model
from torch import nn

from avpretrain.config.reader import to_dict
from avpretrain.config.schedules import Cost, Phase, Step
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError
from avpretrain.core.files import atomic_path
from avpretrain.cost.count import count_flops
from avpretrain.training.folders import CONFIG, WEIGHTS

__all__ = ["Data", "Method", "Preview"]


@runtime_checkable
class Data(Protocol):
    """What is trained on."""

    @property
    def fingerprint(self) -> str:
        """Equal = the same data; a run refuses to resume with others."""

    def __len__(self) -> int:
        """Samples in an epoch."""

    def key(self, position: int) -> str:
        """Name of the sample at a position in the order of training, counted over all epochs."""

    def describe(self) -> dict[str, Any]:
        """What run.json says of it; `split` is what the start banner calls it."""


@dataclass(frozen=True)
class Preview:
    """What a method showed of itself between steps."""

    line: str
    """For the console."""
    measures: dict[str, float] = field(default_factory=dict)
    picture: Path | None = None
    """An image file, which trackers get."""


class Method(ABC):
    """A thing that can be trained. Subclasses implement what is abstract, and what else they know better.

    Args:
        cfg: the run's, of the type `config`; a constructor opens nothing.
    """

    config: ClassVar[type[EngineConfig]] = EngineConfig
    """The schema of a run's config."""
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {"loss": "min"}
    """By which a checkpoint may be the best; `measure` and `preview` give their values."""
    shown: ClassVar[Mapping[str, str]] = {}
    """Metrics that the progress bar shows after the loss, by the label that they have there."""
    max_lost_share: float = 1.0
    """A run stops once more than this share of samples (and at least 20) could not be read."""
    previews: bool = False
    """Whether `preview` shows anything."""

    def __init__(self, cfg: EngineConfig) -> None:
        self.cfg = cfg
        self._counted: dict[Phase, float] = {}

    @classmethod
    def of(cls, cfg: EngineConfig) -> Method:
        """The method of a config, which may be a relative of this one."""
        return cls(cfg)

    # --- before the first step ---------------------------------------------------------------------------------------

    def open(self) -> Sequence[str]:
        """Opens the data and fills in what of the config depends on them; returns warnings for a person.

        Called once, on every rank, before everything below.

        Raises:
            UsageError: the config does not fit the data.
            UserError: the data can't be read.
        """
        return ()

    @property
    @abstractmethod
    def data(self) -> Data:
        """What is trained on."""

    def phase(self, progress: float) -> Phase:
        """What holds at `progress`, a share of the samples in [0, 1]; equal phases have equal shapes."""
        return Phase()

    def phases(self) -> list[Phase]:
        """The phases of a run, in order, each once."""
        return list(dict.fromkeys(self.phase(i / 1000) for i in range(1001)))

    def check(self, steps: Sequence[Step]) -> None:
        """Refuses a plan that nothing can be learned from.

        Raises:
            UsageError: with these steps, that is so.
        """
        return

    def cost(self, rule: str) -> Cost:
        """What `schedule.batch.rule` holds constant, of one sample in a phase.

        Raises:
            UsageError: the method knows no such rule.
        """
        if rule != "flops":
            raise UsageError(f"schedule.batch.rule {rule} means nothing to {self.cfg.method}; use constant or flops")
        return lambda phase: self.flops(phase, 1)

    def flops(self, phase: Phase, batch_size: int) -> float:
        """Floating-point operations of training on one sample in a batch of so many over all ranks."""
        if phase not in self._counted:
            self._counted[phase] = count_flops(self.model, self.example, phase)
        return self._counted[phase]

    # --- training ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, on the CPU. `forward(batch, phase)` returns scalar losses, of which `loss` is minimised.

        Parameters of one dimension are not decayed, nor those whose names end as `model.no_decay` says (a tuple).
        On a GPU, steps of a phase are captured as a CUDA graph and replayed, unless `run.cuda_graphs` is never: forward
        reads no number from the device, and what changes from step to step reaches it in the batch's tensors, not in
        attributes that it counts up itself.
        """

    def initialise(self, model: nn.Module) -> None:
        """Called on fresh runs alone, before the first step: imported weights, a teacher's."""
        return

    @abstractmethod
    def batches(self, steps: Sequence[Step], rank: int, world: int) -> AbstractContextManager[Any]:
        """A context that gives an iterator over this rank's share of the batch of each step, as read.

        Draws must be functions of a step's `seen`, so that a run resumes to the bit.
        """

    def lost(self, raw: Any) -> Sequence[str]:
        """Why samples of a batch could not be read and were replaced, a line for each."""
        return ()

    def prepare(self, raw: Any, phase: Phase, device: torch.device) -> Any:
        """What the model sees of a batch, on the device."""
        return raw.to(device)

    @abstractmethod
    def example(self, phase: Phase, batch_size: int, device: torch.device) -> Any:
        """What `prepare` gives, of noise: for measurements of time and memory."""

    # --- between steps -----------------------------------------------------------------------------------------------

    def measure(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Measures of a checkpoint from the mean losses of the steps since the one before it."""
        return {"loss": losses["loss"]}

    def preview(self, model: nn.Module, step: Step) -> Preview | None:
        """Shows what the model makes of samples that are not trained on, after `step`; none = nothing to show."""
        return None

    @property
    def model_config(self) -> Any:
        """A dataclass from which the model can be built again; it is saved next to the weights."""
        return self.cfg

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes a trained model: `model.safetensors` and `config.json`."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_model(model, str(temporary / WEIGHTS))
            values = {"method": self.cfg.method, "config": to_dict(self.model_config)}
            (temporary / CONFIG).write_text(json.dumps(values, indent=2) + "\n")

    def next_round(self) -> Method | None:
        """After a finished run: the next one, whose config names a folder of its own; none = all is done."""
        return None
