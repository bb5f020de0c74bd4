"""Training runs that take a second: a tiny model on a tiny data set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from avpretrain.config.reader import from_dict
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.training.folders import list_checkpoints
from tests.support.tiny_datasets import Spec, make_dataset

CLIPS = 20

CONFIG: dict[str, Any] = {
    "name": "test",
    "model": {
        "input": {"audio_frames": 64, "mels": 32, "video_frames": 4, "video_fps": 4.0, "video_size": 32},
        "width": 32,
        "heads": 2,
        "audio": {"depth": 1, "decoder": {"input": "diffused", "width": 32, "depth": 1, "heads": 2}},
        "video": {"depth": 1, "decoder": {"input": "diffused", "kind": "cross", "width": 32, "depth": 1, "heads": 2}},
        "fusion": {"depth": 1},
    },
    "schedule": {
        "samples": 120,
        "audio_mask_ratio": {"kind": "linear", "start": 0.9, "end": 0.5, "levels": 3},
        "video_mask_ratio": {"kind": "linear", "start": 0.9, "end": 0.5, "levels": 3},
        "batch": {"size": 4, "multiple": 4, "rule": "visible_tokens", "max_size": 8},
    },
    "optim": {"lr": 1.0e-3},
    "data": {"num_workers": 0, "shuffle_window": 2},
    "run": {"tracker": "none", "log_every": 2, "checkpoint_every": 24, "preview_clips": 0, "keep_checkpoints": 0},
}


def tiny_data(root: Path) -> Path:
    """Twenty clips in five shards."""
    return make_dataset(root, [Spec(seconds=1.0, size=(32, 40)) for _ in range(CLIPS)])


def tiny_config(shards: Path, run_dir: Path, **sections: dict[str, Any]) -> TrainConfig:
    """`CONFIG` on a data set and in a folder; keyword arguments update its sections."""
    values = json.loads(json.dumps(CONFIG))
    for section, changes in sections.items():
        values[section].update(changes)
    cfg = from_dict(TrainConfig, values)
    data_cfg = dataclasses.replace(cfg.data, shards=(str(shards),))
    return dataclasses.replace(cfg, data=data_cfg, output_dir=str(run_dir))


def final_state(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights and optimiser state of a run's last checkpoint."""
    last = list_checkpoints(run_dir / "checkpoints")[-1]
    weights, optimizer = load_file(last / "model.safetensors"), load_file(last / "optimizer.safetensors")
    return weights | {f"optimizer.{name}": value for name, value in optimizer.items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether both hold the same tensors, to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
