"""Which clips are trained on and which are scored, for sets whose splits have names of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avpretrain.cli.main import run
from avpretrain.config.reader import from_dict, to_dict
from avpretrain.config.train import DataConfig
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.splits import SplitRoles, chosen_splits, is_held_out, role_of
from avpretrain.evaluation.labels import cross_validation_parts, official_parts, read_task
from avpretrain.evaluation.setup import random_encoder
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.method import held_out
from tests.evaluation.probe.test_probe import clip
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny

AUDIOSET = ["balanced_train"] * 8 + ["unbalanced_train"] * 16 + ["eval"] * 8


@pytest.fixture(scope="module")
def audioset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Low and high tones under AudioSet's splits, with several classes a clip."""
    specs = [
        Spec(seconds=0.6, split=split, label=("low", "high")[i % 2], pitch=(i % 8) + 60 * (i % 2), picture=False,
             labels=(("tags", [("low", "high")[i % 2], *(["all"] if i % 3 else [])]), ("id", str(i))))
        for i, split in enumerate(AUDIOSET)
    ]  # fmt: skip
    return str(make_dataset(tmp_path_factory.mktemp("data") / "audioset", specs))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    random_encoder(tiny(), seed=3).save_pretrained(folder)
    (folder.parent / "run.json").write_text("{}")
    return folder.parent


def answer(capsys: pytest.CaptureFixture[str], verb: str, *args: object) -> dict[str, Any]:
    capsys.readouterr()
    run(verb, [*map(str, args), "--json", "--num-workers", "0", "--no-baselines"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_names_of_splits() -> None:
    names = ("Train", "unbalanced_train", "dev", "eval", "test_unseen_speaker", "trainer")
    assert [role_of(name) for name in names] == [
        "train", "train", "val", "test", None, None
    ]  # fmt: skip
    assert [is_held_out(name) for name in ("eval", "dev", "test_unseen_speaker", "test_train", "other")] == [
        True, True, True, False, False
    ]  # fmt: skip
    there = ["balanced_train", "unbalanced_train", "eval", "other"]
    assert chosen_splits("train", there) == there[:2]
    assert chosen_splits("train", ["train", "noisy_train"]) == ["train"]
    assert chosen_splits("test", there) == ["eval"]
    assert chosen_splits(("eval", "balanced_train"), there) == ["balanced_train", "eval"]
    assert chosen_splits(("balanced_train", "train", "test"), there) == ["balanced_train", "eval"]
    assert chosen_splits("all", there) == there
    assert chosen_splits("val", there) == chosen_splits("nowhere", there) == []


@pytest.mark.parametrize(
    ("split", "clips"),
    [("train", 24), (("balanced_train", "unbalanced_train"), 24), (("balanced_train",), 8), ("test", 8), ("all", 32)],
)
def test_splits_to_train_on(audioset: str, split: str | tuple[str, ...], clips: int) -> None:
    found = ClipSet([audioset], split)
    assert len(found) == clips
    wanted = {"eval"} if split == "test" else {name for name in AUDIOSET if split == "all" or name != "eval"}
    wanted = {"balanced_train"} if split == ("balanced_train",) else wanted
    assert {found.shard_of(row)[1].split for row in range(len(found))} == set(found.clips_by_split) == wanted


def test_several_sets_need_not_have_every_split(audioset: str, tmp_path: Path) -> None:
    other = str(make_dataset(tmp_path / "other", [Spec(picture=False)] * 3))
    assert len(ClipSet([audioset, other], ("balanced_train", "train"))) == 11
    assert len(ClipSet([audioset, other], "train")) == 27
    with pytest.raises(UserError, match=r"no data set has a split 'tran'; there are: balanced_train, .*, eval, train"):
        ClipSet([audioset, other], ("balanced_train", "tran"))
    with pytest.raises(UserError, match="has no split 'eval, balanced_train'; it has: train"):
        ClipSet([audioset, other], ("eval", "balanced_train"))


@pytest.mark.parametrize(
    ("written", "read"), [("train", "train"), (["train"], "train"), (["a_train", "b_train"], ("a_train", "b_train"))]
)
def test_configs_name_one_split_or_several(written: object, read: object) -> None:
    cfg = from_dict(TrainConfig, {"data": {"split": written}})
    assert cfg.data.split == read
    assert from_dict(TrainConfig, to_dict(cfg)) == cfg
    assert isinstance(to_dict(cfg)["data"]["split"], str) == isinstance(read, str)


@pytest.mark.parametrize("split", [(), ("a", "a"), ("a", ""), ""])
def test_impossible_splits_are_refused(split: Any) -> None:
    with pytest.raises(ValueError, match="split"):
        DataConfig(split=split)


@pytest.mark.parametrize(
    ("split", "said"), [("all", "(eval 8)"), ("train", ""), (("balanced_train", "eval"), "(eval 8)")]
)
def test_training_on_evaluation_clips_is_said(audioset: str, split: str | tuple[str, ...], said: str) -> None:
    warning = "".join(held_out(split, ClipSet([audioset], split)))
    assert said in warning and bool(warning) == bool(said)


def test_the_verb_takes_several_splits(audioset: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("train", ["tiny_mavil", "--data.shards", audioset, "--data.split", "balanced_train", "unbalanced_train",
                  "--output-dir", str(out), "--schedule.samples", "8", "--schedule.batch.size", "8",
                  "--run.preview-clips", "0", "--data.num-workers", "0", "--run.tracker", "none"])  # fmt: skip
    data = json.loads((out / "run.json").read_text())["data"]
    assert (data["clips"], data["split"]) == (24, "balanced_train, unbalanced_train")


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ([], (24, 8)),
        (["--train-split", "balanced_train"], (8, 8)),
        (["--train-split", "unbalanced_train", "--test-split", "balanced_train"], (16, 8)),
        (["--train-split", "balanced_train", "eval", "--test-split", "unbalanced_train"], (16, 16)),
    ],
)
def test_audioset_is_probed(
    audioset: str, checkpoint: Path, options: list[str], sizes: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    result = answer(capsys, "probe", checkpoint, audioset, "--label", "tags", *options)
    (part,) = result["parts"]
    assert (part["fit"] + part["val"], part["test"]) == sizes
    assert result["metric"] == "map"
    assert result["clips"]["used"] == sum(sizes)


def test_audioset_is_fine_tuned_by_its_recipes(
    audioset: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--samples-per-epoch", "8"]
    for recipe, train in (("as20k", 8), ("as2m", 24)):
        result = answer(capsys, "finetune", checkpoint, audioset, "--label", "tags", "--recipe", recipe, *short)
        (part,) = result["parts"]
        assert (part["fit"] + part["val"], part["test"], result["metric"]) == (train, 8, "map")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--train-split", "balanced"], UserError, "no split 'balanced' in the data .*--train-split says which"),
        (["--train-split", "eval", "--test-split", "eval"], UsageError, "split 'eval' is named twice"),
        (["--folds", "3", "--test-split", "eval"], UsageError, "name splits or folds, not both"),
        (
            ["--test-split", "balanced_train", "--train-split", "eval", "--label", "id"],
            UserError,
            "no two training clips",
        ),
    ],
)
def test_wrong_splits_are_one_line(
    audioset: str, checkpoint: Path, options: list[str], error: type[UserError], words: str
) -> None:
    label = [] if "--label" in options else ["--label", "class"]
    with pytest.raises(error, match=words) as stop:
        run("probe", [str(checkpoint), audioset, *label, *options, "--num-workers", "0"])
    assert "\n" not in str(stop.value)


def rows(values: list[Any], test: list[Any]) -> list[Any]:
    clips = [clip(f"k{i}", {"x": value, "fold": str(i % 3)}) for i, value in enumerate([*values, *test])]
    return [(i, one, "train" if i < len(values) else "test") for i, one in enumerate(clips)]


def test_a_label_with_a_value_for_each_clip_is_refused() -> None:
    with pytest.raises(UserError, match=r"'x' has 12 values for 12 clips, and no two training clips have the same"):
        official_parts(read_task(rows([f"v{i}" for i in range(9)], ["a", "b", "c"]), "x"))
    task = read_task(rows([f"v{i}" for i in range(9)], []), "x")
    with pytest.raises(UserError, match="no two training clips"):
        cross_validation_parts(task, ["1", "2", "3"] * 3)


def test_test_clips_of_other_classes_are_refused() -> None:
    with pytest.raises(UserError, match="no test clip has a value of the label 'x' that a training clip has"):
        official_parts(read_task(rows(["a", "a", "b", "b"], ["c", "d"]), "x"))
    with pytest.raises(UserError, match="no test clip has a value"):
        official_parts(read_task(rows([["a"], ["a", "b"]], [["c"], []]), "x"))
    assert official_parts(read_task(rows(["a", "a", "b", "b"], ["c", "a"]), "x")).test.tolist() == [4, 5]


def test_roles_may_be_said() -> None:
    roles = SplitRoles(train=("a", "b"), test=("c",))
    assert [roles.of(name) for name in ("a", "b", "c", "train", "eval", "val", "d")] == [
        "train", "train", "test", None, None, "val", None
    ]  # fmt: skip
