"""Loader processes and who owns them: a `Loader` ends them when it is closed, exhausted or failed, the kernel when the
training process is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from avpretrain.core.errors import UserError
from avpretrain.core.processes import die_with_parent
from avpretrain.data.batch import RawBatch
from avpretrain.data.read.storage import Waiting

CLOSING = 1.0
"""Seconds that loader processes are given to end by themselves; then they are killed."""
FIRST_WORD, LATER_WORD = 8.0, 3.0
"""Seconds of waiting for remote clips before a line says so; the first batch waits for processes to start, too."""

_base: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


class _LoaderProcess(_base.Process):
    """Ends with the process that started it; ended by SIGKILL where DataLoader or Python's exit would send SIGTERM."""

    def start(self) -> None:
        super().start()
        self._popen.terminate = self._popen.kill  # what multiprocessing calls on daemons as the program ends

    def terminate(self) -> None:
        self.kill()

    def run(self) -> None:
        die_with_parent()
        super().run()


class _LoaderContext(type(_base)):  # type: ignore[misc]
    """Remembers what it started."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[_LoaderProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> _LoaderProcess:
        process = _LoaderProcess(*args, **kwargs)
        self.started.append(process)
        return process


def process_context() -> BaseContext:
    """How loader processes start: never by forking this one, whose threads may hold locks.

    On Linux they are forked from a server that has imported what they need, once for all of them.
    """
    context: BaseContext = _LoaderContext()
    if sys.platform == "linux":
        context.set_forkserver_preload(["__main__", "avpretrain.data.read.loader_server"])
    return context


class Loader(Iterator[RawBatch]):
    """Batches of a data set, made by processes of their own; a context manager, which ends them.

    A loader that is exhausted, or that raised, is closed already.

    Args:
        dataset: of samples, or of whole batches where it is iterable. A `UserError` that it yields or raises ends the
            iteration here, in the process that reads the batches.
        num_workers: processes; 0 = none, batches are made here.
        prefetch: batches that each process prepares ahead.
        remote: the URLs that clips come from; one that lets the reader wait is named, once, on stderr.
        options: DataLoader's.
    """

    def __init__(
        self, dataset: Dataset[Any], num_workers: int, prefetch: int, remote: Sequence[str] = (), **options: Any
    ) -> None:
        self._batches: Iterator[Any] | None = None
        self._context: Any = process_context()
        self._waiting = Waiting(", ".join(remote), FIRST_WORD if num_workers else LATER_WORD)
        options |= {"num_workers": num_workers, "pin_memory": torch.cuda.is_available()}
        options["generator"] = torch.Generator()  # so that the global generator is left alone
        if num_workers:
            options |= {"prefetch_factor": prefetch, "multiprocessing_context": self._context}
            options["worker_init_fn"] = _ignore_sigterm
            dataset = (_ParcelStream if isinstance(dataset, IterableDataset) else _Parcel)(dataset)
        self._loader: DataLoader[Any] = DataLoader(dataset, **options)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> RawBatch:
        """The next batch.

        Raises:
            UserError: the data set could not be read, or a loader process died.
            RuntimeError: a loader process failed for a reason of its own, a mistake in the program.
        """
        try:
            if self._batches is None:
                self._batches = iter(self._loader)
            with self._waiting:
                batch = next(self._batches)
            self._waiting.after = LATER_WORD
            if isinstance(batch, UserError):
                raise batch
        except BaseException as error:
            lost = [process for process in self._context.started if process.exitcode]
            self.close()
            if isinstance(error, Exception) and not isinstance(error, (StopIteration, UserError)):
                _raise_in_a_line(error, bool(lost))
            raise
        return batch

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the loader processes, within seconds whatever they do; no batch comes after that."""
        batches, self._batches = self._batches, iter(())
        started = [process for process in self._context.started if process.pid]
        self._context.started = []
        shutdown = getattr(batches, "_shutdown_workers", None)
        try:
            if shutdown is not None:
                # On a thread: torch waits without end for a lock that a killed process held.
                thread = threading.Thread(target=_quietly, args=(shutdown,), name="closing", daemon=True)
                thread.start()
                thread.join(CLOSING)
        except RuntimeError:  # no new threads: Python is about to end
            pass
        finally:
            for process in started:
                process.kill()
            for process in started:
                process.join(CLOSING)

    def __del__(self) -> None:
        if "_batches" in vars(self):
            self.close()


def _quietly(shutdown: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):  # queues and pipes of processes that are gone
        shutdown()


def _raise_in_a_line(error: Exception, lost: bool) -> None:
    """Says an exception of DataLoader without the traceback that it carries in its message; returns if there is none.

    Raises:
        UserError: a process died.
        RuntimeError: the data set raised.
    """
    lines = str(error).splitlines() or [""]
    if lines[0].strip("'\"").startswith("Caught ") and "DataLoader worker process" in lines[0]:
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        raise RuntimeError(f"a loader process failed: {last}") from error
    if lost or ("DataLoader worker" in lines[0] and isinstance(error, RuntimeError)):
        raise UserError(
            f"the loader processes died ({lines[0] or type(error).__name__}); "
            "if memory ran out, lower data.num_workers or data.prefetch"
        ) from None


def _ignore_sigterm(worker: int) -> None:
    """In a loader process: SIGTERM is ignored, though torch has just given it a handler that dies of it.

    A signal to a whole job reaches loaders too, and the training process needs them until it has saved.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Parcel(Dataset[Any]):
    """A data set that loader processes open when they are first asked for a sample, so that what fails can be told."""

    def __init__(self, dataset: Any) -> None:
        self._dataset, self._packed = dataset, b""

    def __getstate__(self) -> bytes:
        return self._packed or pickle.dumps(self._dataset)

    def __setstate__(self, packed: bytes) -> None:
        self._dataset, self._packed = None, packed

    def _open(self) -> Any:
        if self._dataset is None:
            self._dataset = pickle.loads(self._packed)
        return self._dataset

    def __getitems__(self, places: Sequence[Any]) -> Sequence[Any]:
        try:
            samples: Sequence[Any] = self._open().__getitems__(places)
            return samples
        except UserError as error:  # an exception that is raised here arrives as a traceback
            return [error]


class _ParcelStream(_Parcel, IterableDataset[Any]):
    """The same of an iterable data set."""

    def __iter__(self) -> Iterator[Any]:
        try:
            batches: Iterable[Any] = self._open()
            yield from batches
        except UserError as error:
            yield error
