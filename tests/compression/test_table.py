from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from avpretrain.compression import table
from avpretrain.compression.networks import MobileNetV1
from avpretrain.core.errors import UserError


def test_every_method_has_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = MobileNetV1(3, 0.05, channels=1).eval()
    monkeypatch.setattr(table, "BITS", (4,))
    monkeypatch.setattr(table, "SPARSITIES", (0.5,))
    images, classes = torch.randn(12, 1, 32, 32), torch.arange(12) % 3
    rows = table.measure(net, images, images, classes, seed=0, steps=2)
    kinds = {(r["method"], r["bits"], r["grid"]) for r in rows if r["table"] == "bits"}
    methods = ("naive", "equalise", "dfq", "independent", "propagated", "real")
    assert kinds == {(m, b, g) for m in methods for b in (4,) for g in ("per tensor", "per channel")}
    assert [r["method"] for r in rows if r["table"] == "sparsity"] == ["magnitude", "independent", "propagated", "real"]
    assert rows[0]["table"] == "full" and all(0 <= r["accuracy"] <= 1 for r in rows)


def test_digits_are_read_with_their_split(tmp_path: Path) -> None:
    for index in (0, 7):
        soundfile.write(tmp_path / f"3_amy_{index}.wav", np.random.default_rng(index).normal(size=3000) / 10, 8000)
    images, classes, test = table.digits(tmp_path)
    assert images.shape == (2, 1, 64, 64) and classes.tolist() == [3, 3]
    assert sorted(test.tolist()) == [False, True]
    with pytest.raises(UserError, match="no recordings"):
        table.digits(tmp_path / "empty")
