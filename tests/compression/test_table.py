from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch import nn

from avpretrain.compression import table
from avpretrain.compression.digits import digits
from avpretrain.compression.table import Settings
from avpretrain.core.errors import UsageError, UserError

SMALL = Settings(epochs=1, steps=2)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two digits by one speaker."""
    folder = tmp_path / "fsdd"
    folder.mkdir()
    random = np.random.default_rng(0)
    for digit in (0, 1):
        for index in range(12):
            wave = np.sin(np.arange(1600) * (0.2 + digit)) + random.normal(size=1600) / 5
            soundfile.write(folder / f"{digit}_amy_{index}.wav", wave / 4, 8000)
    return folder


def tiny(*_: object, classes: int, **__: object) -> nn.Module:
    """Three convolutions, the second depthwise, and a classifier."""

    def norm(width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 4, 1), *norm(16), nn.Conv2d(16, 16, 3, 2, 1, groups=16), *norm(16), nn.Conv2d(16, 20, 1),
        *norm(20), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, classes),
    )  # fmt: skip


def test_every_method_has_its_rows_and_none_is_measured_twice(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "BITS", (4,))
    monkeypatch.setattr(table, "SPARSITIES", (0.5,))
    monkeypatch.setattr(table, "build_small", tiny)
    monkeypatch.setattr(table, "NOISE", 8)
    monkeypatch.setattr(table, "measure_int8", lambda *_: iter(()))  # exports can't be traced under type checks
    out = tmp_path / "table.json"
    rows = table.run(recordings, SMALL, out, {})
    kinds = {(r.method, r.bits, r.grid) for r in rows if r.table == "bits"}
    assert kinds == {(m, 4, g) for m in table.QUANTISED for g in table.GRIDS}
    assert [r.method for r in rows if r.table == "sparsity"] == list(table.PRUNED)
    full = {r.method: r for r in rows if r.table == "full"}
    assert full["full"].output_error == 0 and full["equalise"].output_error < 1e-8
    assert all(0 <= r.accuracy <= 1 for r in rows)
    assert all(0.3 < r.zeros < 0.5 for r in rows if r.sparsity)  # the stem and depthwise layers are dense
    text = table.markdown(rows)
    assert text.count("| naive |") == 4 and text.count("| magnitude |") == 2

    saved = json.loads(out.read_text())
    saved["rows"] = [r for r in saved["rows"] if r["method"] != "dfq"]
    out.write_text(json.dumps(saved))
    measured = []
    monkeypatch.setattr(table.Bench, "quantised", lambda self, *what: measured.append(what) or self.ready)
    monkeypatch.setattr(table, "train", lambda *_: pytest.fail("trained again"))
    again = table.run(recordings, SMALL, out, {})
    assert [m[0] for m in measured] == ["dfq", "dfq"] and len(again) == len(rows)
    with pytest.raises(UsageError, match="no table of these settings"):
        table.run(recordings, replace(SMALL, steps=3), out, {})


def test_digits_are_read_with_their_split(tmp_path: Path) -> None:
    for index in (0, 7):
        soundfile.write(tmp_path / f"3_amy_{index}.wav", np.random.default_rng(index).normal(size=3000) / 10, 8000)
    images, classes, test = digits(tmp_path)
    assert images.shape == (2, 1, 64, 64) and classes.tolist() == [3, 3]
    assert sorted(test.tolist()) == [False, True]
    with pytest.raises(UserError, match="no recordings"):
        digits(tmp_path / "empty")
