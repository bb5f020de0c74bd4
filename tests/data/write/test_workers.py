"""Workers that crash or hang take only their task with them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from avpretrain.core.errors import UserError
from avpretrain.data.write.workers import TaskError, run_contained


def act(task: str, beat: Callable[[], None]) -> None:
    """Does what its task says."""
    if task == "segfault":
        ctypes.string_at(0)
    if task == "abort":
        os.abort()
    if task == "leave":
        os._exit(3)
    if task == "raise":
        raise TaskError("two\nlines")
    if task == "disk full":
        raise UserError("no space")
    if task == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        time.sleep(1000)
    if task == "slow":
        for _ in range(12):
            time.sleep(0.5)
            beat()
    if task == "nap":
        time.sleep(0.5)


def test_failures_are_told_apart_and_contained() -> None:
    tasks = ["segfault", "a", "hang", "abort", "b", "raise", "leave", "slow", "c"]
    outcomes = {o.task: o.failure for o in run_contained(act, tasks, workers=3, timeout=5.0)}
    assert outcomes == {
        "a": None,
        "b": None,
        "c": None,
        "slow": None,  # six seconds in all, but never five without progress
        "segfault": "crashed the decoder (SIGSEGV)",
        "abort": "crashed the decoder (SIGABRT)",
        "leave": "ended the worker process (exit status 3)",
        "hang": "made no progress for 5 s",
        "raise": "two lines",
    }


def test_what_the_user_must_mend_ends_the_run() -> None:
    with pytest.raises(UserError, match="no space"):
        list(run_contained(act, ["a", "disk full", "b"], workers=1, timeout=60.0))


def _living_children() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_no_worker_outlives_the_run() -> None:
    running = run_contained(act, ["nap"] * 4, workers=2, timeout=60.0)
    assert next(running).failure is None
    running.close()
    names = [" ".join(child.cmdline()) for child in _living_children()]
    assert sum("forkserver" in name for name in names) <= 1, names


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="only Linux can signal a parent's end (F_SETSIG); elsewhere workers end at their next message",
)
def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); from tests.data.write.test_workers import report_and_hang\n"
        "from avpretrain.data.write.workers import run_contained\n"
        "if __name__ == '__main__': list(run_contained(report_and_hang, [sys.argv[2]] * 2, 2, 600.0))"
    )
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen([sys.executable, "-c", script, root, str(pids)], cwd=root)
    try:
        wait_for(lambda: pids.is_file() and len(pids.read_text().split()) == 2)
        workers = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))


def report_and_hang(path: str, beat: Callable[[], None]) -> None:
    with open(path, "a") as file:  # noqa: PTH123
        file.write(f"{os.getpid()}\n")
    time.sleep(1000)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
