"""Programs on several ranks of one machine, on its CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def on_ranks(ranks: int, *program: object) -> None:
    """Runs a script with its arguments, or `-m MODULE ...`, on so many ranks, to their good end.

    By torchrun, which `accelerate launch --multi_gpu` calls too: `accelerate launch --cpu` starts a single process,
    whatever --num_processes says.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run(
        [*command, *map(str, program)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
