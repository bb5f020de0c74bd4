"""Two retrievals beside each other: paired by clip, on one gallery."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from avpretrain.cli.main import run
from avpretrain.core.errors import UserError
from avpretrain.evaluation.predictions import Ranks, difference, load_scored, matched
from avpretrain.evaluation.setup import random_encoder
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny


def ranked(keys: str, *rank: float) -> Ranks:
    return Ranks(tuple(keys), np.array(rank, dtype=float), np.ones(len(rank)))


def test_difference_is_paired_by_key() -> None:
    a, b = matched(ranked("abcd", 1, 1, 1, 2), ranked("dcba", 9, 9, 1, 1))
    found = difference(a, b, seed=0)
    assert found.value == pytest.approx((3.5 - 3) / 4)  # three and a half of four found, against three
    same = difference(a, a, seed=0)
    assert same.value == 0.0 and same.ci[1] is not None and same.ci == pytest.approx((-same.ci[1], same.ci[1]))


def test_other_galleries_can_not_be_compared() -> None:
    with pytest.raises(UserError, match="different galleries"):
        matched(ranked("abc", 1, 2, 3), ranked("abd", 1, 2, 3))


def test_verb_compares_with_an_earlier_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(make_dataset(tmp_path / "set", [Spec(seconds=1.0, split="test", size=(32, 32)) for _ in range(12)]))
    for seed in (3, 4):
        random_encoder(tiny(), seed).save_pretrained(tmp_path / f"m{seed}")
    common = ["--num-workers", "0", "--json", "--out"]
    run("retrieve", [str(tmp_path / "m3"), data, *common, str(tmp_path / "a.json")])
    first = json.loads(capsys.readouterr().out)
    run(
        "retrieve",
        [str(tmp_path / "m4"), data, *common, str(tmp_path / "b.json"), "--compare", str(tmp_path / "a.json")],
    )
    second = json.loads(capsys.readouterr().out)
    gain = second["comparison"]
    assert gain["difference"] == pytest.approx(second["recall_at_1"] - first["recall_at_1"])
    assert gain["difference_ci"][0] <= gain["difference"] <= gain["difference_ci"][1]
    random = first["baselines"]["random_encoder"]
    assert random["difference"] == pytest.approx(first["recall_at_1"] - random["recall_at_1"])
    assert len(load_scored(tmp_path / "a.npz").keys) == 12
    run("compare", [str(tmp_path / "b.json"), str(tmp_path / "a.json"), "--json"])
    assert json.loads(capsys.readouterr().out) == gain
