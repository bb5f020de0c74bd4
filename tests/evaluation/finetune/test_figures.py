"""Pictures of a fine-tuned classifier."""

from __future__ import annotations

from pathlib import Path

from avpretrain.cli.main import run
from avpretrain.evaluation.setup import random_encoder
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny


def test_confusion_and_classes_lie_beside_the_result(tmp_path: Path) -> None:
    specs = [
        Spec(seconds=0.5, split=split, label=("low", "high")[i % 2], pitch=60 * (i % 2), picture=False)
        for i, split in enumerate(["train"] * 8 + ["test"] * 4)
    ]
    data = str(make_dataset(tmp_path / "set", specs))
    random_encoder(tiny(), seed=3).save_pretrained(tmp_path / "model")
    options = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "4", "--no-baselines", "--num-workers", "0"]
    args = [str(tmp_path / "model"), data, "--label", "class", *options, "--out", str(tmp_path / "r.json")]
    run("finetune", [*args, "--pictures"])
    assert sorted(path.name for path in tmp_path.glob("r*")) == [
        "r-classes.png", "r-confusion.png", "r.json", "r.npz",
    ]  # fmt: skip
