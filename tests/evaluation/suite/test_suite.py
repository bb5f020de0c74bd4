"""A list of evaluations: what it may say, what it runs, what it runs again, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avpretrain.cli.main import run
from avpretrain.config.reader import presets
from avpretrain.core.errors import UsageError, UserError
from avpretrain.evaluation.probe.run import ProbeConfig, run_probe
from avpretrain.evaluation.setup import random_encoder
from avpretrain.evaluation.suite.plan import SuiteConfig, jobs_of, load_suite
from tests.support.media_files import write_media
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny

LIST = """
data:
  tones: {folder: tones}
  gone: {folder: gone}
tasks:
  - {name: "Tones, pitch", data: tones, label: class, modalities: [audio, video, both]}
  - {name: "Tones, folds", data: tones, label: class, folds: fold, methods: [knn]}
  - {name: "Tones, found", data: tones, methods: [retrieve]}
  - {name: "Tones, trained", data: tones, label: class, methods: [finetune], epochs: 1}
  - {name: "Gone", data: gone, label: class}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list, a checkpoint, and shards in which one data set of the list is missing."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "list.yaml").write_text(LIST)
    splits = ["train"] * 24 + ["val"] * 8 + ["test"] * 12
    specs = [
        Spec(seconds=0.6, split=split, label=("low", "high")[i % 2], pitch=60 * (i % 2), size=(32, 32),
             labels=(("fold", str(i % 3)),), picture=i != 5)
        for i, split in enumerate(splits)
    ]  # fmt: skip
    make_dataset(folder / "shards" / "tones", specs, per_shard=16)
    random_encoder(tiny(), seed=3).save_pretrained(folder / "model")
    return folder


def evaluated(place: Path, workers: int = 0) -> None:
    args = ["--shards", str(place / "shards"), "--out", str(place / "out"), "--num-workers", str(workers)]
    run("evaluate", [str(place / "model"), str(place / "list.yaml"), *args])


def test_list_becomes_results_and_a_table(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AVPRETRAIN_REAL_DATA", raising=False)
    evaluated(place)
    said = capsys.readouterr()
    assert sorted(path.name for path in (place / "out").glob("*.json")) == [
        "tones_folds_audio_knn.json", "tones_found_retrieve.json", "tones_pitch_audio_linear.json",
        "tones_pitch_both_linear.json", "tones_pitch_video_linear.json", "tones_trained_audio_finetune.json",
    ]  # fmt: skip
    table = (place / "out" / "table.md").read_text()
    assert said.out.strip() == table.strip()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    pitch = next(row for row in rows if row[0] == "Tones, pitch")
    assert pitch[1:4] == ["12", "audio", "linear probe"]
    assert pitch[4] == "100.0 (75.8 to 100.0)" and pitch[7] == "50.0"
    widths = {len(row) for row in rows}
    assert widths == {8, 9, 10}  # fine-tuning, retrieval, probes
    assert "Left out, since it was not there: data set gone." in table
    assert "Tones, pitch from both: 1 clips could not be read or lack a modality." in table
    assert "mean over folds" in table

    evaluated(place)
    again = capsys.readouterr()
    assert "probes" not in again.err and again.out == said.out  # all results were there
    evaluated(place, workers=1)
    again = capsys.readouterr()
    assert "probes" not in again.err and "retrieve" not in again.err  # how clips are read changes no result
    path = place / "out" / "tones_found_retrieve.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "another"}))
    evaluated(place)
    assert [line for line in capsys.readouterr().err.splitlines() if line and "table" not in line] == [
        "Tones, found: retrieve from both"
    ]


@pytest.mark.parametrize("modality", ["audio", "both"])
def test_probes_that_share_features_are_those_that_do_not(place: Path, modality: str) -> None:
    shared = json.loads((place / "out" / f"tones_pitch_{modality}_linear.json").read_text())
    cfg = ProbeConfig(label="class", modality=modality, num_workers=0)  # type: ignore[arg-type]
    alone = run_probe(place / "model", (str(place / "shards" / "tones"),), cfg).result
    assert json.loads(json.dumps(alone)) == shared


def test_missing_data_is_sharded_from_files(tmp_path: Path) -> None:
    for i, kind in enumerate(["train", "train", "val", "test", "test"]):
        write_media(
            tmp_path / "packs" / "tones" / kind / ("a", "b")[i % 2] / f"{i}.wav", 0.5, video=None, audio="pcm_s16le"
        )
    random_encoder(tiny(), seed=3).save_pretrained(tmp_path / "model")
    (tmp_path / "list.yaml").write_text("data: {t: {folder: tones}}\ntasks: [{name: T, data: t, label: class}]\n")
    where = ["--shards", tmp_path / "shards", "--packs", tmp_path / "packs", "--out", tmp_path / "out"]
    run("evaluate", [str(x) for x in (tmp_path / "model", tmp_path / "list.yaml", *where, "--num-workers", 0)])
    assert json.loads((tmp_path / "out" / "t_audio_linear.json").read_text())["parts"][0]["test"] == 2


def test_no_data_at_all_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVPRETRAIN_REAL_DATA", raising=False)
    with pytest.raises(
        UserError, match="holds none of the data sets tones, gone; shard them there, or name with --packs"
    ):
        run("evaluate", [str(place / "model"), str(place / "list.yaml"), "--shards", str(place), "--out", str(place)])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks: []", "lists no tasks"),
        ("tasks: [{name: X, data: d, label: y}]", "the task 'X' is on 'd'"),
        ("data: {d: {folder: d}}\ntasks: [{name: X, data: d}]", "the task 'X' needs a label"),
        ("data: {d: {folder: d}}\ntasks: [{name: X, data: d, label: y, recipe: z}]", "names no recipe: z"),
        ("data: {d: {folder: d}}\ntasks: [{name: X, data: d, lable: y}]", "did you mean .*label"),
        ("data: {d: {source: d}}\ntasks: [{name: X, data: d, label: y}]", "data.d.source"),
        ("data: {d: {folder: d}}\ntasks: [{name: X, data: d, label: y}, {name: x, data: d, label: z}]", "listed twice"),
    ],
)
def test_wrong_lists_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(UsageError, match=says) as error:
        jobs_of(load_suite(str(tmp_path / "list.yaml")), SuiteConfig(shards=tmp_path, out=tmp_path))
    assert "\n" not in str(error.value)


def test_presets_are_lists() -> None:
    for path in presets("suites").values():
        assert jobs_of(load_suite(path.stem), SuiteConfig(shards=Path("s"), out=Path("o")))
