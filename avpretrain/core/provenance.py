"""What a number was measured with: versions, hardware, commit. Written into every result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import avpretrain

PACKAGES = (
    "torch",
    "torchaudio",
    "decord",
    "diffusers",
    "accelerate",
    "webdataset",
    "av",
    "numpy",
    "scikit-learn",
    "tokenizers",
)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that can move a number; missing ones are left out."""
    versions_by_name = {"python": platform.python_version(), "avpretrain": avpretrain.__version__}
    for name in PACKAGES:
        try:
            versions_by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions_by_name


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, and the GPUs that torch sees."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "processor": _processor(), "cores": cores, "gpus": gpus}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def commit() -> str | None:
    """Commit of the source tree this package runs from, '+' when it has local changes; none for an installed wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def environment() -> dict[str, Any]:
    """All of it, as it goes into a JSON file."""
    return {"versions": versions(), "hardware": hardware(), "commit": commit()}
