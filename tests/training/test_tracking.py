"""What trackers get: settings, metrics and pictures; and that one that fails does not end the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avpretrain.api import train
from avpretrain.config.train import Tracker
from avpretrain.core.errors import UsageError
from avpretrain.training import launch
from avpretrain.training.tracking import hyperparameters, log_picture
from tests.support.tiny_runs import tiny_config, tiny_data


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


def test_tensorboard_has_settings_metrics_and_pictures(shards: Path, tmp_path: Path) -> None:
    run = {"tracker": "tensorboard", "preview_clips": 2, "checkpoint_every": 0, "preview_every": 8}
    cfg = tiny_config(shards, tmp_path / "run", run=run, schedule={"samples": 8})
    train(cfg)
    found: dict[str, set[str]] = {"scalars": set(), "images": set(), "tensors": set()}
    plugins: set[str] = set()
    for events in cfg.run_dir.rglob("events.out.tfevents.*"):
        log = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
        for kind, names in found.items():
            names.update(log.Tags()[kind])
        plugins.update(log.summary_metadata[tag].plugin_data.plugin_name for tag in log.summary_metadata)
    assert "loss" in found["scalars"]
    assert any(name.startswith("reconstructions") for name in found["images"])
    assert "hparams" in plugins


def test_settings_are_plain_values_under_dotted_names(tmp_path: Path) -> None:
    flat = hyperparameters(tiny_config(tmp_path, tmp_path / "run"))
    assert flat["optim.lr"] == 1e-3
    assert flat["schedule.audio_mask_ratio.kind"] == "linear"
    assert all(isinstance(value, str | int | float | bool) for value in flat.values())


def test_every_tracker_of_accelerate_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(get_args(Tracker)) == {*LOGGER_TYPE_TO_CLASS, "none"}
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["tensorboard"])
    for name in sorted(LOGGER_TYPE_TO_CLASS.keys() - {"tensorboard"}):
        with pytest.raises(UsageError, match=f"run.tracker is {name}, which is not installed"):
            launch.check_tracker(name)


def test_a_tracker_out_of_reach_costs_a_line(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(path)
    got: list[np.ndarray] = []

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    trackers = [
        SimpleNamespace(name="wandb", log_images=refuse),
        SimpleNamespace(name="aim", log_images=lambda values, step: got.extend(values["reconstructions"])),
        SimpleNamespace(name="dvclive"),
    ]
    (line,) = log_picture(trackers, "reconstructions", path, 8)
    assert line == f"tracker wandb did not take {path}: ConnectionError: no route"
    assert got[0].shape == (4, 6, 3)
