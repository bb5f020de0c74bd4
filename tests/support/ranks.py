"""Several ranks on one machine over gloo, as `accelerate launch` starts them, in seconds: forked with torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP` sets.

accelerate shards on accelerators only and falls back to DDP on CPUs, so ranks with these pass for GPUs (see `_rank`).
"""


def run_ranks(
    folder: Path, target: Callable[..., None], *args: Any, ranks: int = 2, env: dict[str, str] | None = None
) -> list[int | None]:
    """Calls `target(*args)` on every rank and returns their exit codes; what they print goes to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.ranks", "tests.support.preload", "tests.support.tiny_runs"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(env or {})}
    processes = []
    for rank in range(ranks):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = context.Process(target=_rank, args=(own, folder / f"rank{rank}.txt", target, args))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(timeout=200)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def said(folder: Path) -> str:
    """What all ranks printed, for the message of a failed assertion."""
    return "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("rank*.txt")))


def _rank(env: dict[str, str], output: Path, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.update(env)
    sys.stdout = sys.stderr = output.open("w", buffering=1)
    try:
        if "ACCELERATE_USE_FSDP" in env:
            _pass_for_gpus()
        target(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the others hang in a collective call if this one waits for them
    os._exit(0)


def _pass_for_gpus() -> None:
    """Makes accelerate take CPU ranks for GPUs where it decides whether to shard; torch shards on either, over gloo."""
    real = PartialState.__init__

    def start(self: PartialState, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = start
