"""What trackers get besides metrics: a run's settings, and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avpretrain.config.reader import to_dict
from avpretrain.config.train import EngineConfig


def hyperparameters(cfg: EngineConfig) -> dict[str, str | int | float | bool]:
    """The config as dotted names and plain values, which is what trackers take; none and lists as text."""
    return _flat(to_dict(cfg), "")


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, str | int | float | bool]:
    dotted: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            dotted |= _flat(value, f"{prefix}{name}.")
        else:
            dotted[prefix + name] = value if isinstance(value, str | int | float | bool) else str(value)
    return dotted


def log_picture(trackers: Sequence[Any], name: str, path: Path, seen: int) -> list[str]:
    """Gives an image file to each of accelerate's trackers that takes images; returns what failed, one line each.

    A tracker that is out of reach does not end a run that took days.
    """
    failed = []
    for tracker in trackers:
        try:
            if tracker.name == "mlflow":
                tracker.log_artifact(str(path), name)
            elif hasattr(tracker, "log_images"):
                _log_image(tracker, name, path, seen)
        except Exception as error:
            failed.append(f"tracker {tracker.name} did not take {path}: {type(error).__name__}: {str(error)[:200]}")
    return failed


def _log_image(tracker: Any, name: str, path: Path, seen: int) -> None:
    from PIL import Image

    with Image.open(path) as image:
        pixels_HWC = np.asarray(image.convert("RGB"))
    if tracker.name == "tensorboard":
        tracker.log_images({name: pixels_HWC[None]}, step=seen, dataformats="NHWC")
    else:
        tracker.log_images({name: [pixels_HWC]}, step=seen)
