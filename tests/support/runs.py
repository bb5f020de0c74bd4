"""Run folders as training writes them, made in milliseconds."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from avpretrain.config.reader import to_dict
from avpretrain.core.files import write_json
from avpretrain.evaluation.predictions import Predictions
from avpretrain.evaluation.results import predictions_path
from avpretrain.measures.studies import Inpainting
from avpretrain.methods.diffmavil.config import TrainConfig, load_config
from avpretrain.methods.diffmavil.cost import clip_flops, plan_of

ORIGIN: dict[str, Any] = {
    "format": 1, "checkpoint": {}, "data": {}, "model": {}, "seed": 0, "versions": {}, "hardware": {}, "commit": None,
}  # fmt: skip
"""What every result of a checkpoint says of where it comes from, empty."""


def write_run(
    folder: Path,
    preset: str = "tiny_mavil",
    *,
    name: str = "",
    seed: int = 0,
    samples: int = 6400,
    stop_at: float = 1.0,
    speed: float = 60.0,
    accuracy: float | None = 0.8,
    pictures: int = 1,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Writes the folder of a run whose losses fall, whose costs are right, and whose probe scores `accuracy`.

    Args:
        stop_at: share of the run that was done.
        speed: clips a second at the end of the schedule.
        changes: fields of the config's `model` to replace.
    """
    cfg = dataclasses.replace(load_config(preset), name=name or preset, seed=seed, output_dir=str(folder))
    cfg = dataclasses.replace(
        cfg,
        schedule=dataclasses.replace(cfg.schedule, samples=samples),
        model=dataclasses.replace(cfg.model, **(changes or {})),
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False))
    lines = _lines(cfg, samples, stop_at, speed)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps(_description(cfg)))
    for i in range(pictures):
        _picture(folder / "reconstructions" / f"{(i + 1) * samples // pictures:012d}.png", seed + i)
    if accuracy is not None:
        write_probe(folder, accuracy)
    return folder


def _lines(cfg: TrainConfig, samples: int, stop_at: float, speed: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(cfg.seed)
    last = clip_flops(cfg.model, cfg.schedule.audio_mask_ratio.end, cfg.schedule.video_mask_ratio.end).training
    seconds, total, lines = 0.0, 0.0, []
    for step in plan_of(cfg, samples):
        ratios = step.phase.numbers()
        flops = clip_flops(cfg.model, *ratios.values(), step.batch_size).training
        seconds += step.batch_size / speed * flops / last
        total += flops * step.batch_size
        done = step.seen / samples
        fall = math.exp(-6 * done) + 0.02 * rng.normal()
        losses = {"reconstruction_audio": 0.5 + 0.5 * fall, "reconstruction_video": 0.4 + 0.6 * fall}
        losses |= {"inter": 2.0 + 2.0 * fall, "intra_audio": 3.5 + 0.6 * fall, "intra_video": 3.4 + 0.7 * fall}
        weighted = losses["reconstruction_audio"] + losses["reconstruction_video"] + 0.1 * losses["inter"]
        clips_per_second = speed * last / flops * (1 + 0.03 * rng.normal())
        line = {
            "step": step.index + 1, "seen": step.seen + step.batch_size, "samples_total": samples, "loss": weighted,
            **losses, "grad_norm": 1.0, **ratios,
            "batch_size": step.batch_size, "lr": step.lr, "clips_per_second": clips_per_second, "seconds": seconds,
            "data_wait_share": 0.04 + 0.01 * rng.random(), "failed_clips": 0, "flops_per_clip": flops,
            "flops_total": total, "peak_memory_bytes": 0,
        }  # fmt: skip
        lines.append(line)
        if done >= stop_at:
            break
    return lines


def _description(cfg: TrainConfig) -> dict[str, Any]:
    return {
        "name": cfg.name,
        "command": ["avpretrain", "train", cfg.name],
        "data": {"fingerprint": "5e" * 32, "clips": 480, "split": "train"},
        "parameters": 2_345_678,
        "ranks": 1,
        "versions": {"python": "3.11.9", "avpretrain": "0.1.0", "torch": "2.11.0"},
        "hardware": {"machine": "x86_64", "processor": "A processor", "cores": 2, "gpus": []},
        "commit": "0123456789ab",
    }


def write_probe(folder: Path, accuracy: float, label: str = "class", modality: str = "audio", **more: Any) -> Path:
    """Writes the result of a linear probe."""
    half = 0.03
    path = folder / "eval" / f"linear_probe_{label}_{modality}.json"
    path.parent.mkdir(exist_ok=True)
    result = {
        "task": "linear_probe", "label": label, "modality": modality, "metric": "accuracy", "accuracy": accuracy,
        "ci": [accuracy - half, accuracy + half],
        "baselines": {
            "random_encoder": {"metric": "accuracy", "accuracy": 0.41, "ci": [0.37, 0.45]},
            "mean_log_mel": {"metric": "accuracy", "accuracy": 0.33, "ci": [0.3, 0.36]},
            "majority_class": {"metric": "accuracy", "accuracy": 0.1, "ci": [0.08, 0.12]},
        },
        **more,
    }  # fmt: skip
    path.write_text(json.dumps(result))
    return path


def write_scores(result: Path, right: list[bool], classes: int = 2) -> None:
    """Writes the scores of single clips next to a result: clip i is of class i modulo `classes`, and right or not."""
    target = np.arange(len(right)) % classes
    said = np.where(right, target, (target + 1) % classes)
    names = tuple(f"class{c}" for c in range(classes))
    Predictions(tuple(map(str, range(len(right)))), names, np.eye(classes)[said], target).save(predictions_path(result))


def write_inpainted(folder: Path, key: str = "clip") -> Path:
    """Writes what inpainting leaves of one clip: a list, spectrograms, and two sounds; returns the original's path."""
    import soundfile

    inpaint = folder / "eval" / "inpaint"
    inpaint.mkdir(parents=True, exist_ok=True)
    filled = Inpainting(clips=1, split="test", settings={}, shown=(key,), mse={}, **ORIGIN)
    write_json(inpaint / "errors.json", filled.to_json())
    _picture(inpaint / f"{key}-audio.png", 0)
    for i, name in enumerate(("original", "filled")):
        samples = (8000 * np.sin(np.arange(1600) * 0.1 * (i + 1))).astype(np.int16)
        soundfile.write(inpaint / f"{key}-{name}.wav", samples, 16_000, subtype="PCM_16")
    return inpaint / f"{key}-original.wav"


def _picture(path: Path, seed: int) -> None:
    from matplotlib.figure import Figure

    path.parent.mkdir(exist_ok=True)
    figure = Figure(figsize=(7, 2), dpi=80)
    for axis in figure.subplots(1, 6):
        axis.imshow(np.random.default_rng(seed).random((16, 16)).cumsum(axis=1))
        axis.set_axis_off()
    figure.savefig(path)
