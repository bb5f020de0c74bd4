"""A little text, made by rule, and a language model that learns it in a second."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from avpretrain.methods.load import config_of
from avpretrain.methods.openelm.config import OpenELMConfig

WORDS = (
    "the", "a", "cat", "dog", "bird", "river", "stone", "sees", "hears", "follows", "small", "grey", "loud", "under",
    "over", "beside", "and", "or", "été", "漢字",
)  # fmt: skip


def sentences(count: int, seed: int = 0) -> str:
    """Lines of a few words, a blank line after every fifth."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))).capitalize() + "." for _ in range(count)]
    return "".join(line + ("\n\n" if i % 5 == 4 else "\n") for i, line in enumerate(lines))


def write_texts(folder: Path) -> Path:
    """Two files for training and one for validation."""
    folder.mkdir(parents=True)
    for name, count, seed in (("one_train.txt", 120, 1), ("two_train.txt", 120, 2), ("val.txt", 60, 3)):
        (folder / name).write_text(sentences(count, seed))
    return folder


VALUES: dict[str, Any] = {
    "name": "lm",
    "method": "openelm",
    "model": {
        "context": 16, "width": 32, "depth": 2, "head_width": 8, "heads_per_group": 2,
        "scaling": {"alpha": [0.5, 1.0], "beta": [0.5, 4.0], "divisor": 8},
    },
    "average": 2,
    "schedule": {"samples": 192, "batch": {"size": 8}},
    "optim": {"lr": 0.01, "warmup": 0.1, "min_lr_ratio": 0.1, "weight_decay": 0.1},
    "run": {"tracker": "none", "log_every": 4, "checkpoint_every": 48, "keep_checkpoints": 0},
}  # fmt: skip


def text_config(text: Path, run_dir: Path, **sections: Any) -> OpenELMConfig:
    """`VALUES` on a text and in a folder; keyword arguments update its sections."""
    values = {**VALUES, "output_dir": str(run_dir), "data": {"shards": [str(text)], "vocabulary": 300}}
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
    cfg = config_of(values)
    assert isinstance(cfg, OpenELMConfig)
    return cfg
