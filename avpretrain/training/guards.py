"""What keeps a run from dying badly: preemption, a hang watchdog, non-finite losses, running out of memory."""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

from avpretrain.config.schedules import Phase
from avpretrain.core.errors import UserError


class Preemption:
    """Remembers SIGTERM, SIGUSR1 and a first Ctrl-C, so that the loop can save and stop between steps.

    A second Ctrl-C stops at once. Works in the main thread only; elsewhere it never fires.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[Preemption]:
        """Handles the signals within the block, and puts the old handlers back."""
        try:
            old = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        except ValueError:  # not the main thread: whoever owns it owns the signals
            old = {}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


@contextmanager
def sparing_children() -> Iterator[None]:
    """Processes started in the block never get the signals of preemption; this process gets them at the block's end.

    Schedulers and `timeout` signal every process of a job, those in which torch.compile compiles too, and a step whose
    compiler is dead waits for ever. They start at the first step and inherit which signals are blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Watchdog:
    """Ends a rank that has not finished a step for `seconds`, after printing the stack of each of its threads.

    Python's fault handler does the work on a thread of its own, so it fires even while native code holds the
    interpreter.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> Watchdog:
        self.alive()
        return self

    def alive(self) -> None:
        """Starts the countdown anew."""
        if self.seconds > 0 and sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__)

    def __exit__(self, *error: object) -> None:
        if self.seconds > 0:
            faulthandler.cancel_dump_traceback_later()


class FiniteGuard:
    """Stops the optimiser, on the device and without a synchronisation, at the first gradient that is not finite.

    A fused optimiser skips its step while its `found_inf` is 1. The flag never falls back, so the weights stay those
    from before the bad step until the loop looks, however late that is. All ranks see the same reduced gradients, so
    all agree.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._bad = torch.zeros((), device=device)
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        self._index = torch.zeros((), dtype=torch.int64, device=device)
        optimizer.found_inf = self._bad  # type: ignore[attr-defined]

    def begin(self, step: int) -> None:
        """Says which step comes next; a captured step reads it from the device."""
        self._index.fill_(step)

    def watch(self, grad_norm: Tensor) -> None:
        """Notes whether the gradient of this step is finite; call before the optimiser's step."""
        bad = ~torch.isfinite(grad_norm.detach())
        self._step.copy_(torch.where(bad & (self._bad == 0), self._index, self._step))
        self._bad.copy_(torch.maximum(self._bad, bad.float()))

    def first_bad_step(self) -> int | None:
        """Index of the first step that was not finite, if any; waits for the device."""
        step = int(self._step.item())
        return None if step < 0 else step


@contextmanager
def memory_advice(batch_size: int, ranks: int, phase: Phase) -> Iterator[None]:
    """Says running out of memory, the GPU's or the machine's, in words that name the batch and the remedy.

    Raises:
        UserError: it happened in the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):  # the CPU's
            raise
        where = f" with {phase}" if str(phase) else ""
        raise UserError(
            f"out of memory at batch size {batch_size} ({batch_size // ranks} a rank){where}; lower "
            f"schedule.batch.size, cap schedule.batch.max_size below {batch_size}, or add "
            "--run.activation-checkpointing"
        ) from None
