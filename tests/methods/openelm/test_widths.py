"""The study of layer widths: arms that match, every arm in the answer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from avpretrain.config.text import PackConfig
from avpretrain.data.text.pack import pack
from avpretrain.methods.load import load_config
from avpretrain.methods.openelm.config import OpenELMConfig
from tests.support.texts import write_texts

STUDY = Path(__file__).parents[3] / "docs" / "studies" / "layer_widths.py"


@pytest.fixture(scope="module")
def study() -> object:
    spec = importlib.util.spec_from_file_location("layer_widths", STUDY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("base", ["widths", "widths_tiny"])
def test_arms_match_in_all_that_costs(study: object, base: str) -> None:
    start = load_config(base)
    assert isinstance(start, OpenELMConfig)
    found = {name: study.sizes(study.arm(start, name)) for name in study.ARMS}
    for key in ("parameters", "flops_per_window", "kv_bytes_per_token"):
        assert len({of[key] for of in found.values()}) == 1
    assert found["reverse"]["heads"] == found["layerwise"]["heads"][::-1]
    assert found["reverse"]["hidden"] == found["layerwise"]["hidden"][::-1]
    assert len(set(found["uniform"]["hidden"])) == 1 < len(set(found["layerwise"]["hidden"]))


def test_it_trains_every_arm_and_prints_every_arm(
    study: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack([write_texts(tmp_path / "texts")], tmp_path / "tokens", PackConfig(vocabulary=300))
    study.main(tmp_path / "tokens", tmp_path / "out", rates=(4e-3,), seeds=(0,), samples=16)
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said for name in study.ARMS) and "reverse less uniform" in said
    found = json.loads((tmp_path / "out" / "layer_widths.json").read_text())
    assert set(found["arms"]) == set(study.ARMS) and found["versions"]["torch"] and found["hardware"]
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    study.main(tmp_path / "tokens", tmp_path / "out", rates=(4e-3,), seeds=(0,), samples=16)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")} == again
    assert len(again) == 6
