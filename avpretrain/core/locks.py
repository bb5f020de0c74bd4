"""One writer a folder: a lock that the kernel takes back when its holder ends, in whatever way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avpretrain.core.errors import UserError
from avpretrain.core.terminal import plain

LOCK_NAME = ".lock"
"""File that holds the lock and names its holder. It may be left behind by a kill, and then holds nothing."""

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Keeps every other process that asks for this lock out of `folder`, which is made if need be.

    The lock is an flock: it ends with its holder, so a killed one blocks nobody. A folder that was made for it and is
    empty at the end is removed. Where the file system knows no locks, a line on stderr says so and the block runs.

    Args:
        folder: what to lock.
        doing: what the holder does there, for the message: 'training', 'writing shards'.

    Raises:
        UserError: another process holds it (the message names its id and its machine), or the folder can't be written.
    """
    made = not folder.exists()
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path)
    except BlockingIOError:
        raise UserError(
            f"{_holder(path)} is {doing} in {folder}; wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}; fix that or choose another folder") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is still held, so that nobody else's is removed
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


@contextmanager
def turns(path: Path) -> Iterator[None]:
    """Lets one process at a time through the block; the others wait for it.

    Args:
        path: an empty file that stands for the block; it is made, with its folder, and stays.

    Raises:
        OSError: it can't be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: all go through
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _acquire(path: Path) -> int:
    """An open handle of the lock file, which holds the lock and the name of this process.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it can't be written.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                said = f"{path.parent} can't be locked ({error.strerror}); let no other process write there"
                print(plain(f"avpretrain: {said}"), file=sys.stderr)
                return handle
            # The holder before may have removed the file between our opening and our locking it.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _holder(path: Path) -> str:
    """'process 123 on HOST', as the lock file says."""
    try:
        pid, host = path.read_text(errors="replace")[:300].split()
    except (OSError, ValueError):
        return "another process"
    return f"process {int(pid)} on {host}" if pid.isdigit() and host.isprintable() else "another process"
