"""How a run was launched: what accelerate was asked for, refused where it would be ignored or done wrong in silence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend

from avpretrain.config.schedules import Step
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError

NAMES = {"no": "fp32", "bf16": "bf16"}
"""accelerate's words for precisions, and ours."""


def choose_precision(wanted: str) -> tuple[str, str]:
    """accelerate's word for the precision of a run, 'no' or 'bf16', and where it comes from, for a person.

    An explicit `run.precision` counts before the launcher, and 'auto' follows the launcher where that was asked for a
    precision. Otherwise 'auto' is bf16 on a GPU that computes in it, and fp32 elsewhere.

    Args:
        wanted: `run.precision`.

    Raises:
        UsageError: the launcher was asked for a precision that training does not know.
    """
    asked = launched_precision()
    if wanted == "auto":
        if asked is None:
            return ("bf16", "") if native_bf16() else ("no", "")
        if asked not in NAMES:
            raise UsageError(
                f"accelerate launch asks for mixed precision {asked}, but training knows bf16 and fp32 ('no'); launch "
                "with --mixed_precision bf16 or no, or set run.precision"
            )
        return asked, "as accelerate launch says"
    word = next(word for word, name in NAMES.items() if name == wanted)
    return word, "" if asked in (None, word) else f"by run.precision, though accelerate launch says {asked}"


def native_bf16() -> bool:
    """Whether the GPU computes in bf16 (compute capability 8.0 and above); older ones emulate it, which is slower."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def launched_precision() -> str | None:
    """The mixed precision that accelerate's launcher or environment was asked for; none = nobody asked.

    `accelerate launch` says 'no' of its own where neither its command nor a config file says anything.
    """
    value = os.environ.get("ACCELERATE_MIXED_PRECISION")
    command = launcher()
    if value != "no" or not command or _option(command, "mixed_precision") is not None:
        return value
    return value if _config_of(command) is not None else None


def _config_of(command: Sequence[str]) -> Path | None:
    """The config file that `accelerate launch` read; none = it read none."""
    from accelerate.commands.config.config_args import default_config_file

    named = _option(command, "config_file")
    if named is None and "--cpu" in command:
        return None
    path = Path(named or default_config_file)
    return path if path.is_file() else None


def launcher() -> list[str]:
    """The command of the `accelerate launch` that started this process; empty = none did."""
    try:
        command = psutil.Process().parent()
        words = [] if command is None else command.cmdline()
    except psutil.Error:
        return []
    return words if any("accelerate" in Path(word).name for word in words[:4]) else []


def _option(command: Sequence[str], name: str) -> str | None:
    """The value of an option in a command, given as --a_b X, --a-b X or --a_b=X; none = it is not given."""
    given = None
    for word, following in zip_longest(command, command[1:], fillvalue=""):
        option, equals, value = word.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name:
            given = value if equals else following
    return given


def check_accumulation() -> None:
    """Refuses gradient accumulation by accelerate.

    Raises:
        UsageError: its environment or its launcher asks for it.
    """
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or _option(
        launcher(), "gradient_accumulation_steps"
    )
    if steps not in (None, "1"):
        raise UsageError(
            f"accelerate is asked for gradient accumulation over {steps} steps, which would divide gradients by "
            f"{steps} and accumulate nothing: a contrastive loss needs its whole batch in one step; leave "
            "gradient_accumulation_steps out, and for large batches take more GPUs or --run.activation-checkpointing"
        )


def check_launched_ranks(ranks: int) -> None:
    """Refuses `accelerate launch` that was asked for several ranks and has started one, as it does on CPUs.

    It leaves a rendezvous address in the environment then, and no number of ranks.

    Args:
        ranks: that know of each other.

    Raises:
        UsageError: fewer ranks run than were asked for.
    """
    numbers = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    alone = ranks == 1 and not any(name in os.environ for name in numbers)
    if alone and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        try:
            before = psutil.Process(os.getppid()).environ()
        except psutil.Error:
            before = {}
        if "MASTER_ADDR" not in before:
            raise UsageError(
                "accelerate launch was asked for several ranks and started only one; on GPUs add --multi_gpu, on CPUs "
                "launch with ACCELERATE_USE_CPU=true torchrun --nproc-per-node RANKS -m avpretrain.train ..., and for "
                "one rank give --num_processes 1"
            )


def check_tracker(name: str) -> None:
    """Refuses a tracker whose package is not installed: accelerate would log nothing.

    Raises:
        UsageError: it is not.
    """
    from accelerate.tracking import get_available_trackers

    if name != "none" and name not in {str(tracker) for tracker in get_available_trackers()}:
        package = name.replace("_", "-")
        raise UsageError(
            f"run.tracker is {name}, which is not installed; pip install {package}, or set run.tracker to none"
        )


def banner(
    cfg: EngineConfig,
    accelerator: Accelerator,
    steps: Sequence[Step],
    data: str,
    parameters: int,
    seen: int,
    uncaptured: str,
) -> str:
    """What a run trains with, in a line.

    Args:
        steps: its whole plan.
        data: what it trains on, as '1,000 clips (train)'.
        seen: clips seen before it was taken up; 0 = it begins.
        uncaptured: why steps do not run as CUDA graphs; empty = they do. Said on GPUs alone.
    """
    device, ranks = accelerator.device, accelerator.num_processes
    name = f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    kind = accelerator.distributed_type.value.removeprefix("MULTI_")
    together = f"{ranks} ranks ({kind})" if ranks > 1 else "1 rank"
    word, source = choose_precision(cfg.run.precision)
    precision = NAMES.get(accelerator.mixed_precision, accelerator.mixed_precision)
    remarks = [source] if source and accelerator.mixed_precision == word else []
    if precision == "bf16" and device.type == "cuda" and not native_bf16():
        remarks.append("emulated on this GPU: slow")
    sizes = list(dict.fromkeys(step.batch_size for step in steps))
    low, high = min(sizes), max(sizes)
    compiled = cfg.run.compile or accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    parts = [
        name,
        together,
        precision + (f" ({', '.join(remarks)})" if remarks else ""),
        data,
        f"{parameters:,} parameters",
        f"batch {low}" if low == high else f"batch {low} to {high}",
        f"{steps[-1].seen + steps[-1].batch_size:,} clips to see in {len(steps):,} steps",
        "compiled" if compiled else "not compiled",
    ]
    if not uncaptured:
        parts.append("steps as CUDA graphs")
    elif device.type == "cuda":
        parts.append(f"no CUDA graphs ({uncaptured})")
    return f"{cfg.name}: {', '.join(parts)}" + (f"; resumes at {seen:,}" if seen else "")
