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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from avpretrain.errors import UserError
from avpretrain.processes import die_with_parent

T = TypeVar("T")
Beat = Callable[[], None]
Job = Callable[[Any, Beat], None]
"""Does one task; calls its second argument whenever it has made progress. A function that pickle finds by name.

A `UserError` that it raises ends the whole run; any other exception fails the task.
"""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """A task that ended, and why it failed; none = it did not."""

    task: T
    failure: str | None


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
        UserError: a job raised it, or no worker can be started.
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
        failure = None
        if worker.pipe in spoke:
            try:
                message, text = worker.pipe.recv()
            except (EOFError, OSError):
                failure = _epitaph(worker)
            else:
                worker.last_beat = time.monotonic()
                if message == "fatal":
                    raise UserError(text)
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
            yield Outcome(worker.task, failure)


def _epitaph(worker: _Worker) -> str:
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
        except Exception as error:
            failure = " ".join(f"{type(error).__name__}: {error}".split())[:300]
