"""Runs commands in forks of one process that has imported what they need: for tests that start one many times over.

`python -m avpretrain` imports for a second or four before it does anything; a fork begins at once.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path


class Forked:
    """An `avpretrain` command in a process, and a session, of its own."""

    def __init__(self, server: subprocess.Popen[bytes], pid: int, log: Path) -> None:
        self._server, self.pid, self.log = server, pid, log
        self.status: int | None = None
        """Exit status, or minus the number of the signal that ended it; none while it is not known to have ended."""

    def poll(self) -> int | None:
        """`status`, after a look at how things stand."""
        assert self._server.stdout is not None
        if self.status is None and select.select([self._server.stdout], [], [], 0)[0]:
            self.wait()
        return self.status

    def wait(self) -> int:
        """Its status when it has ended."""
        if self.status is None:
            assert self._server.stdout is not None
            self.status = int(self._server.stdout.readline())
        return self.status

    def kill(self) -> bool:
        """Kills it where it stands; false when it had come to its end before."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        assert self.wait() in (0, -signal.SIGKILL), self.log.read_text()
        return self.status != 0

    def kill_after(self, folder: Path, changes: int) -> bool:
        """Kills it when names below `folder` have changed so many times, which depends on no clock; false as above."""
        seen, last = 0, _names(folder)
        while seen < changes and self.poll() is None:
            time.sleep(0.0005)
            now = _names(folder)
            seen, last = seen + (now != last), now
        return self.kill()


def _names(folder: Path) -> set[str]:
    """Files and folders below a folder that may be changing."""
    return {f"{root}/{name}" for root, folders, files in os.walk(folder) for name in (*folders, *files)}


class Forker:
    """Starts commands, one at a time."""

    def __init__(self, server: subprocess.Popen[bytes], logs: Path) -> None:
        self._server, self._logs = server, logs

    def start(self, *args: object) -> Forked:
        """Runs `avpretrain ARGS`."""
        assert self._server.stdin is not None and self._server.stdout is not None
        log = self._logs / "said.txt"
        log.unlink(missing_ok=True)
        self._server.stdin.write(json.dumps([str(log), *map(str, args)]).encode() + b"\n")
        return Forked(self._server, int(self._server.stdout.readline()), log)

    def run(self, *args: object) -> None:
        """Runs it to its end, which must be a good one."""
        forked = self.start(*args)
        assert forked.wait() == 0, forked.log.read_text()


@contextlib.contextmanager
def forker(logs: Path, *modules: str) -> Iterator[Forker]:
    """A process to fork from, which has imported `modules`; what the commands say goes into the folder `logs`."""
    command = [sys.executable, "-m", "tests.support.forks", *modules]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as server:
        yield Forker(server, logs)
        assert server.stdin is not None
        server.stdin.close()


def _serve() -> None:
    """Life of the process to fork from: a command a line, answered by its process id and, at its end, its status."""
    for line in sys.stdin:
        log, *args = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(Path(log), args)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become(log: Path, args: Sequence[str]) -> None:
    """Turns this process into the command; does not return."""
    from avpretrain.cli.main import main

    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(said, 1)
        os.dup2(said, 2)
        main(args)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    _serve()
