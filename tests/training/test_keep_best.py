"""Which checkpoints stay: the newest, and the best by a stated measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from avpretrain.api import train
from avpretrain.training.checkpoint import Better, CheckpointWriter, Progress, Snapshot
from avpretrain.training.folders import list_checkpoints
from tests.support.tiny_models import tiny
from tests.support.tiny_runs import tiny_config, tiny_data


def write(writer: CheckpointWriter, seen: int, **measures: float) -> None:
    tensors = {"a": torch.zeros(1)}
    writer.save(Snapshot(Progress(seen=seen), tensors, tensors, tiny(), measures))
    writer.wait()


@pytest.mark.parametrize(
    ("measure", "better", "kept"), [("reconstruction", "min", 2), ("recall", "max", 3), ("none", "min", None)]
)
def test_the_best_stays_with_the_newest(tmp_path: Path, measure: str, better: Better, kept: int | None) -> None:
    writer = CheckpointWriter(tmp_path, keep=2, best=measure, better=better)
    values = {1: (0.9, 0.1), 2: (0.2, 0.4), 3: (0.5, 0.8), 4: (0.4, 0.8 - 1e-9), 5: (0.6, 0.2), 6: (0.3, 0.3)}
    for seen, (reconstruction, recall) in values.items():
        write(writer, seen, reconstruction=reconstruction, recall=recall)
    names = [int(path.name) for path in list_checkpoints(tmp_path)]
    assert names == [*([kept] if kept else []), 5, 6]
    best = writer.best()
    assert (best and int(best.name)) == kept


def test_one_without_the_measure_is_never_the_best(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=1, best="recall", better="max")
    write(writer, 1, recall=0.0)
    write(writer, 2)
    write(writer, 3)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [1, 3]


def test_a_measure_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=1, best="recall", better="max")
    for seen, recall in ((1, float("nan")), (2, 0.5), (3, 0.1)):
        write(writer, seen, recall=recall)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [2, 3]


def test_a_run_measures_its_checkpoints(tmp_path: Path) -> None:
    """The loss noted is the mean over the steps since the checkpoint before; R@1 is the preview's."""
    run = {"preview_clips": 4, "preview_every": 48, "keep_best": "recall", "log_every": 1}
    cfg = tiny_config(tiny_data(tmp_path / "shards"), tmp_path / "run", run=run)
    assert train(cfg, stop_at=60).progress.seen == 60
    assert train(cfg).finished
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    measures = {int(p.name): json.loads((p / "state.json").read_text())["measures"] for p in checkpoints}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for start, end in zip([0, *measures], measures, strict=False):
        part = [line for line in lines if start < line["seen"] <= end]
        sums = sum((x["reconstruction_audio"] + x["reconstruction_video"]) * x["batch_size"] for x in part)
        assert measures[end]["reconstruction"] == pytest.approx(sums / (end - start))
    shown = {seen: values["recall"] for seen, values in measures.items() if "recall" in values}
    assert set(shown) == {48, 60, 96, 120}
    beside = [json.loads(path.read_text()) for path in (tmp_path / "run" / "reconstructions").glob("*.json")]
    assert {preview["seen"]: preview["recall"] for preview in beside} == shown
