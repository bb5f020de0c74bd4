"""Runs the cells of a matrix, each stage in a process of its own, some cells at a time."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from types import FrameType
from typing import Any

from avpretrain.ablate.kinds import language_stages
from avpretrain.ablate.matrix import AblationConfig, Cell
from avpretrain.ablate.record import Fingerprint, Record, write_failure, write_record
from avpretrain.core.errors import UserError
from avpretrain.measures.numbers import duration
from avpretrain.measures.runs import read_run
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.load import config_of
from avpretrain.methods.openelm.config import OpenELMConfig

STOP_SECONDS = 60.0
"""What a process gets to save its state when the matrix is stopped."""


class StoppedError(Exception):
    """The matrix was stopped from outside; nothing is to be recorded."""


def stages(cell: Cell, settings: AblationConfig) -> list[tuple[str, list[str]]]:
    """Name and `avpretrain` arguments of each process of a cell, in order."""
    processes = [("train", ["train", str(cell.config_file)])]
    if isinstance(cell.config, OpenELMConfig):
        return processes + language_stages(cell.config, cell.run, settings.split)
    assert isinstance(cell.config, TrainConfig)
    run, own = str(cell.run), cell.config.data
    common = ["--seed", str(cell.seed), "--num-workers", str(own.num_workers)]
    for spec in settings.probes:
        named = ["--label", spec.label, "--modality", spec.modality, "--classifier", spec.classifier]
        named += ["--folds", spec.folds] if spec.folds else []
        named += ["--pooling", spec.pooling] if spec.pooling != "mean" else []
        named += ["--split", settings.split] if settings.split == "val" else []
        result = ["--out", str(cell.run / "eval" / f"{spec.task}.json")]
        processes.append((spec.task, ["probe", run, *(spec.data or own.shards), *named, *common, *result]))
    if settings.retrieval:
        processes.append(("retrieval", ["retrieve", run, *own.shards, "--split", settings.split, *common]))
    if settings.spectrum:
        processes.append(("spectrum", ["spectrum", run, *own.shards, "--split", settings.split, *common]))
    return processes


class Runner:
    """Runs cells until all have had their turn or the process is told to stop.

    Args:
        jobs: cells at a time. They share the GPU where there is one, and are dealt out where there are several.
        say: called with a line about what happens, from any thread.
    """

    def __init__(self, settings: AblationConfig, jobs: int, say: Callable[[str], None]) -> None:
        self.settings, self.jobs, self.say = settings, jobs, say
        self.stopping = threading.Event()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for slot in range(jobs):
            self.slots.put(_environment(slot, jobs))

    def run(self, cells: Sequence[tuple[Cell, Fingerprint]]) -> list[Record]:
        """Records of the cells, failed ones included.

        Args:
            cells: each with its fingerprint.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; trainings have written checkpoints, the same matrix goes on.
        """
        with _interrupted_by_sigterm(), ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._cell, cell, digest) for cell, digest in cells]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop(futures)
                raise
        return [future.result() for future in futures]

    def _cell(self, cell: Cell, digest: Fingerprint) -> Record:
        environment = self.slots.get()
        try:
            return self._stages(cell, digest, environment)
        finally:
            self.slots.put(environment)

    def _stages(self, cell: Cell, digest: Fingerprint, environment: dict[str, str]) -> Record:
        """All processes of one cell; the first that fails is the cell's error."""
        cell.write_config()
        seconds: dict[str, float] = {}
        stage = ""
        try:
            for stage, arguments in stages(cell, self.settings):
                started = time.perf_counter()
                self._process(cell, arguments, environment)
                seconds[stage] = round(time.perf_counter() - started, 3)
                if stage == "train" and not read_run(cell.run, config_of).finished:
                    raise UserError("training was stopped before its end")
            names = {spec.task: spec.name for spec in self.settings.probes if spec.name}
            record = write_record(cell, digest, seconds, self.jobs, names)
        except UserError as error:
            if self.stopping.is_set():
                raise StoppedError from None
            self.say(f"{cell.name}: {stage} failed: {error}")
            return write_failure(cell, digest, stage, str(error))
        self.say(f"{cell.name}: done in {duration(sum(seconds.values()))}")
        return record

    def _process(self, cell: Cell, arguments: Sequence[str], environment: dict[str, str]) -> None:
        """Runs one verb, its output appended to the cell's log.

        Raises:
            UserError: it failed; the message is its own last line.
        """
        command = [sys.executable, "-m", "avpretrain", *arguments]
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        with cell.log.open("ab") as log:
            log.write(f"$ avpretrain {' '.join(arguments)}\n".encode())
            log.flush()
            with self.lock:
                if self.stopping.is_set():
                    raise UserError("stopped")
                process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
                self.running.add(process)
        status = process.wait()
        with self.lock:
            self.running.discard(process)
        if status:
            raise UserError(_last_line(cell.log) or f"exit status {status}")

    def _stop(self, futures: Sequence[Future[Any]]) -> None:
        """Ends what runs, with time to save, and starts nothing more."""
        with self.lock:
            self.stopping.set()
            running = list(self.running)
        for future in futures:
            future.cancel()
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """What tells processes of one slot which GPU and how many threads are theirs."""
    import torch

    variables: dict[str, str] = {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) > 1:
        variables["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return variables


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return "" if last.startswith("$ ") else last.removeprefix("avpretrain: ")


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does, so that no process outlives the matrix."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        old = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever owns it owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
