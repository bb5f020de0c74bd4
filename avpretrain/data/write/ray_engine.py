"""The same work on a Ray cluster: each Ray task runs a few files in a contained worker process on any free node.

The folder that is written must be on storage that all nodes share, and so must the source.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from avpretrain.core.errors import UserError
from avpretrain.data.write.workers import Job, Outcome, run_contained

T = TypeVar("T")

CHUNK = 32
"""Most files a Ray task: starting a worker process takes seconds, so it should serve more than one."""


def run_on_ray(job: Job, tasks: Sequence[T], workers: int, timeout: float) -> Iterator[Outcome[T]]:
    """As `workers.run_contained`, on the cluster that RAY_ADDRESS names, or a local one; the cluster sets the pace.

    Raises:
        UserError: Ray is not installed, or a job raised it.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray; install it with: pip install 'avpretrain[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    try:
        remote: Any = ray.remote(num_cpus=1, max_retries=2)(_run_chunk)
        slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        size = max(1, min(CHUNK, len(tasks) // (4 * slots)))
        chunks = [tasks[i : i + size] for i in range(0, len(tasks), size)]
        waiting = [remote.remote(job, chunk, timeout) for chunk in chunks]
        while waiting:
            ready, waiting = ray.wait(waiting)
            for outcomes in ray.get(ready):
                if isinstance(outcomes, str):
                    raise UserError(outcomes)
                yield from outcomes
    finally:
        if started:
            ray.shutdown()


def _run_chunk(job: Job, tasks: Sequence[T], timeout: float) -> list[Outcome[T]] | str:
    """Outcomes of a few tasks, or the message of a `UserError`."""
    try:
        return list(run_contained(job, tasks, 1, timeout))
    except UserError as error:
        return str(error)
