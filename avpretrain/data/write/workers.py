"""Work that may crash or hang, one task at a time in worker processes that are replaced when they do.

A worker that dies takes only its task with it, and so does one that makes no progress for a while: it is killed.
Workers die with the process that started them.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from avpretrain.core.errors import FAULT, UserError, describe
from avpretrain.core.processes import die_with_parent

T = TypeVar("T")
Beat = Callable[[], None]
Job = Callable[[Any, Beat], None]
"""Does one task; calls its second argument whenever it has made progress. A function that pickle finds by name.

`TaskError` and MemoryError fail the task. Any other exception ends the whole run: a `UserError` as it is, everything
else as a fault of the program, told in one line with the task (by its `str`).
"""


class TaskError(Exception):
    """What a job raises where its task can't be done; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """A task that ended, and why it failed; none = it did not."""

    task: T
    failure: str | None
    killed: bool = False
    """Its worker got SIGKILL from outside, as from a kernel that is short of memory."""


@dataclass(eq=False)
class _Worker:
    process: Any
    pipe: Connection
    ready: bool = False
    """Started and without a task."""
    task: Any = None
    last_beat: float = field(default_factory=time.monotonic)


def run_contained(job: Job, tasks: Sequence[T], workers: int, timeout: float) -> Iterator[Outcome[T]]:
    """Runs `job(task, beat)` for every task; yields outcomes as tasks end.

    Args:
        job: what to do.
        tasks: begun in this order.
        workers: processes.
        timeout: seconds without progress after which a worker is killed.

    Raises:
        UserError: a job raised it, or no worker can be started, or a job failed by a fault of the program.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([job.__module__])
    waiting = collections.deque(tasks)
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.task is not None for worker in pool):
            while waiting and len(pool) < workers:
                pool.append(_start(context, job))
            for worker in pool:
                if worker.ready and waiting:
                    _give(worker, waiting.popleft())
            yield from _collect(pool, timeout)
    finally:
        for worker in pool:
            _end(worker)


def _start(context: Any, job: Job) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, task: Any) -> None:
    worker.task, worker.ready, worker.last_beat = task, False, time.monotonic()
    with contextlib.suppress(BrokenPipeError):  # it died while idle; `_collect` sees that
        worker.pipe.send(task)


def _collect(pool: list[_Worker], timeout: float) -> Iterator[Outcome[Any]]:
    """Waits until something happens; takes workers that died or were killed out of the pool."""
    awaited = [worker for worker in pool if not worker.ready]
    limits = [worker.last_beat + timeout for worker in awaited if worker.task is not None]
    patience = max(0.0, min(limits) - time.monotonic()) if limits else None
    spoke = multiprocessing.connection.wait([worker.pipe for worker in awaited], patience)
    for worker in awaited:
        failure, killed = None, False
        if worker.pipe in spoke:
            try:
                message, text, *trace = worker.pipe.recv()
            except (EOFError, OSError):
                failure = _why_it_ended(worker)
                killed = worker.process.exitcode == -signal.SIGKILL
            else:
                worker.last_beat = time.monotonic()
                if message == "fatal":
                    raise UserError(text) from (RuntimeError(f"in a worker process:\n{trace[0]}") if trace else None)
                if message == "ready":
                    if worker.task is not None:
                        yield Outcome(worker.task, text)
                    worker.task, worker.ready = None, True
        elif worker.task is not None and time.monotonic() - worker.last_beat >= timeout:
            failure = f"made no progress for {timeout:g} s"
        if failure is not None:
            pool.remove(worker)
            _end(worker)
            if worker.task is None:
                raise UserError(f"a worker process {failure} before it had begun; try --workers 1")
            yield Outcome(worker.task, failure, killed)


def _why_it_ended(worker: _Worker) -> str:
    worker.process.join(timeout=5)
    code = worker.process.exitcode
    if code is not None and code < 0:
        return f"crashed the decoder ({signal.Signals(-code).name})"
    return f"ended the worker process (exit status {code})"


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def _serve(job: Job, pipe: Connection) -> None:
    """Life of a worker process."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_WRONLY)  # decoders write about damaged files straight to stderr
    os.dup2(null, 2)
    failure = None
    while True:
        pipe.send(("ready", failure))
        try:
            task = pipe.recv()
        except EOFError:
            return
        failure = None
        try:
            job(task, lambda: pipe.send(("beat", None)))
        except UserError as error:
            pipe.send(("fatal", str(error)))
        except TaskError as error:
            failure = " ".join(str(error).split())[:300]
        except MemoryError:
            failure = "needs more memory than there is"
        except Exception as error:
            line = f"{task}: {describe(error)}; {FAULT}; nothing was skipped for it, and what was done is kept"
            pipe.send(("fatal", line, traceback.format_exc()))
