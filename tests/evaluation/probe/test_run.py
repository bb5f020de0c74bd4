"""The probe from files to files, as the command line runs it."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from avpretrain.cli.main import run
from avpretrain.core.errors import UserError
from avpretrain.core.provenance import versions
from avpretrain.data.read.clips import ClipSet
from avpretrain.evaluation.probe.run import ProbeConfig, run_probe
from avpretrain.evaluation.results import compare_results, result_path
from avpretrain.evaluation.setup import random_encoder
from tests.support.ranks import run_ranks, said
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny

SPLITS = ["train"] * 24 + ["val"] * 8 + ["test"] * 8
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Low and high tones, of lengths that differ."""
    specs = [
        Spec(seconds=0.5 + 0.1 * (i % 7), split=split, label=("low", "high")[i % 2], pitch=(i % 8) + 60 * (i % 2),
             labels=(("fold", str(i % 4)), ("tags", ["x"] if i % 3 else ["x", "y"])), size=(32, 32))
        for i, split in enumerate(SPLITS)
    ]  # fmt: skip
    return str(make_dataset(tmp_path_factory.mktemp("data") / "tones", specs, per_shard=16))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    random_encoder(tiny(), seed=3).save_pretrained(folder)
    (folder.parent / "run.json").write_text("{}")
    return folder.parent


def probed(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    run("probe", [*map(str, args), "--json", "--num-workers", "0"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_result_says_what_was_measured_with_what(
    data: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = probed(capsys, checkpoint, data, "--label", "class")
    assert result["task"] == "linear_probe"
    assert result["accuracy"] == 1.0
    assert set(result["baselines"]) == {"random_encoder", "mean_log_mel", "majority_class"}
    assert result["baselines"]["majority_class"]["accuracy"] == 0.5
    assert result["parts"][0] | {"l2": 0, "val_score": 0} == {
        "name": "official", "fit": 24, "val": 8, "test": 8, "l2": 0, "val_score": 0, "test_score": 1.0
    }  # fmt: skip
    assert result["data"]["fingerprint"] == ClipSet([data]).fingerprint
    assert len(result["checkpoint"]["sha256"]) == 64
    assert result["versions"] == versions()
    saved = checkpoint / "eval" / "linear_probe_class_audio.json"
    assert json.loads(saved.read_text()) == result
    assert saved.with_suffix(".npz").is_file()


def test_results_go_to_the_run_they_belong_to(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    folder = tmp_path / "checkpoints" / "000000001024"
    folder.mkdir(parents=True)
    name = ("linear_probe", "a b", "audio", "")
    assert result_path(tmp_path, None, *name) == tmp_path / "eval" / "linear_probe_a-b_audio.json"
    assert result_path(tmp_path / "model", None, *name) == tmp_path / "eval" / "linear_probe_a-b_audio.json"
    assert result_path(folder, None, *name) == tmp_path / "eval" / "linear_probe_a-b_audio_000000001024.json"
    assert result_path(tmp_path.parent, None, *name) is None
    assert result_path(folder, tmp_path / "x.json", *name) == tmp_path / "x.json"


@pytest.mark.parametrize("extra", [["--modality", "video"], ["--modality", "both", "--pooling", "mean_cls"]])
def test_same_command_twice_gives_the_same_numbers(
    data: str, checkpoint: Path, extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [checkpoint, data, "--label", "class", *extra, "--out", tmp_path / "a.json"]
    assert probed(capsys, *args) == probed(capsys, *args, "--batch-size", 40) | {
        "probe": probed(capsys, *args)["probe"]
    }


def test_folds_test_every_clip(data: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = probed(capsys, checkpoint, data, "--label", "class", "--folds", "fold", "--classifier", "knn")
    assert [part["name"] for part in result["parts"]] == [f"fold {i}" for i in range(4)]
    assert sum(part["test"] for part in result["parts"]) == 40
    assert result["task"] == "knn_probe"
    scores = [part["test_score"] for part in result["parts"]]
    assert result["across_folds"]["mean"] == pytest.approx(sum(scores) / 4)


def test_folds_can_be_made(data: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = probed(capsys, checkpoint, data, "--label", "class", "--folds", "5", "--classifier", "knn")
    assert [(part["name"], part["test"]) for part in result["parts"]] == [(f"fold {i}", 8) for i in range(1, 6)]


@pytest.mark.parametrize("folds", [(), ("--folds", "4")])
def test_validation_clips_are_scored_in_place_of_test_clips(
    data: str, checkpoint: Path, folds: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    result = probed(capsys, checkpoint, data, "--label", "class", "--no-baselines", "--split", "val", *folds)
    train, val = (SPLITS.count(name) for name in ("train", "val"))
    assert sum(part["test"] for part in result["parts"]) == (train + val if folds else val)
    assert result["probe"]["split"] == "val"
    assert (checkpoint / "eval" / "linear_probe_class_audio_val.json").is_file()


def test_several_labels_are_scored_by_map(data: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = probed(capsys, checkpoint, data, "--label", "tags", "--no-baselines")
    assert result["metric"] == "map"
    assert 0 <= result["map"] <= 1
    assert set(result["cis"]) == {"map", "auc", "d_prime"}
    assert "Infinity" not in json.dumps(result) and "NaN" not in json.dumps(result)


def test_compare_pairs_clips_by_key(
    data: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [checkpoint, data, "--label", "class", "--no-baselines"]
    probed(capsys, *args, "--out", tmp_path / "a.json")
    probed(capsys, *args, "--folds", "fold", "--out", tmp_path / "b.json")
    found = compare_results(tmp_path / "a.json", tmp_path / "b.json")
    assert found["clips"] == 8
    assert found["difference_ci"][0] <= found["difference"] <= found["difference_ci"][1]
    run("compare", [str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"])
    assert json.loads(capsys.readouterr().out) == found
    probed(capsys, checkpoint, data, "--label", "tags", "--no-baselines", "--out", tmp_path / "c.json")
    with pytest.raises(UserError, match="different tasks"):
        compare_results(tmp_path / "a.json", tmp_path / "c.json")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"label": "clas"}, "no clip has the label 'clas'; labels there are: class, fold, tags"),
        ({"label": "class", "folds": "nofold"}, "not every clip"),
        ({"label": "class", "folds": "class"}, "at least 3 folds"),
    ],
)
def test_errors_say_what_to_do(data: str, checkpoint: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run_probe(checkpoint, (data,), ProbeConfig(**fields, num_workers=0))


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(
    data: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "two.json"
    args = [str(checkpoint), data, "--label", "class", "--batch-size", "5"]
    alone = probed(capsys, *args, "--out", tmp_path / "one.json")
    script = [str(ROOT / "eval" / "linear_probe.py"), *args, "--num-workers", "1", "--out", str(out)]
    assert run_ranks(tmp_path / "said", run_script, script) == [0, 0], said(tmp_path / "said")
    found = json.loads(out.read_text())
    for result in (found, alone):
        del result["probe"]["num_workers"], result["commit"]
    assert found == alone


def run_script(args: list[str]) -> None:
    sys.argv = args
    runpy.run_path(args[0], run_name="__main__")
