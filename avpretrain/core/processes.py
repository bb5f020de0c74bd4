"""How the processes of a job end: children with the process that started them, ranks with their launcher."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from pathlib import Path

LOOK_EVERY = 1.0
"""Seconds between two looks at whether the launcher still runs."""


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that started it is gone, even if native code hangs here.

    For processes that `multiprocessing` started by a fork server or by spawning. Their sentinel is a pipe whose other
    end only the parent holds; when it closes, the kernel sends a signal. Does nothing but on Linux.
    """
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None:
        import fcntl

        sentinel = parent.sentinel
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if multiprocessing.connection.wait([sentinel], timeout=0):
            os._exit(1)


def end_with_launcher() -> None:
    """Ends this process, with status 1, soon after the torchrun or `accelerate launch` that started it is gone.

    Nobody would start a rank again, or count it, after that. Does nothing in a process that neither started.
    """
    launcher = os.getppid()
    if "TORCHELASTIC_RUN_ID" in os.environ or _is_accelerate(launcher):
        threading.Thread(target=_outlive, args=(launcher,), name="launcher", daemon=True).start()


def is_lost_rank(error: BaseException) -> bool:
    """Whether an exception says that a collective call of several ranks failed since another rank is gone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    text = str(error)
    of_torch = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return of_torch or any(word in text for word in ("Connection closed by peer", "Connection reset by peer", "gloo"))


def _is_accelerate(pid: int) -> bool:
    if not any(name.startswith("ACCELERATE_") for name in os.environ):
        return False
    import psutil

    with contextlib.suppress(psutil.Error):
        program, *arguments = psutil.Process(pid).cmdline() or [""]
        return Path(program).name.startswith("python") and "accelerate" in " ".join(arguments[:3])
    return False


def _outlive(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOK_EVERY)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError, ValueError):
            print("avpretrain: the launcher of this run is gone, so its ranks end here", file=sys.stderr, flush=True)
    os._exit(1)
