"""A method of one's own, named by its dotted class, is trained, killed, resumed and reported by the engine as it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from avpretrain import api
from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError, UserError
from avpretrain.measures.runs import read_run
from avpretrain.methods.load import config_of, load_config, load_model, make_method
from avpretrain.training.folders import list_checkpoints
from avpretrain.training.metrics import read_metrics
from tests.support.tiny_runs import final_state, same_bits
from tests.support.toy import Half, Regression

VALUES = {
    "method": "tests.support.toy.Regression",
    "schedule": {"samples": 4096, "batch": {"size": 16, "rule": "flops"}},
    "optim": {"lr": 0.05},
    "run": {"tracker": "none", "log_every": 4, "checkpoint_every": 512},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    assert api.train(config_of({**VALUES, "name": "toy", "output_dir": str(folder)})).finished
    return folder


def test_it_learns_and_is_logged(straight: Path) -> None:
    lines = read_metrics(straight)
    assert lines[-1]["error"] < 0.1 * lines[0]["error"]
    assert {line["half"] for line in lines} == {1.0, 2.0}
    assert lines[0]["flops_per_clip"] == 2 * 5 * 2, "a product forward and the gradient of its weights"
    assert yaml.safe_load((straight / "config.yaml").read_text())["method"] == VALUES["method"]
    assert json.loads((straight / "run.json").read_text())["data"] == {"fingerprint": "toy", "clips": 64}
    weights = load_file(straight / "model" / "model.safetensors")
    assert torch.allclose(weights["line.weight"], torch.ones(1, 5), atol=0.05)


def test_a_killed_run_resumes_to_the_bit(config: Path, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "avpretrain", "train", str(config), "--output-dir", str(run)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list_checkpoints(run / "checkpoints") and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert api.train(config_of({**VALUES, "name": "toy", "output_dir": str(run)})).finished
    assert same_bits(final_state(run), final_state(straight))


def test_the_best_checkpoint_is_by_its_own_measure(straight: Path) -> None:
    best = [json.loads((p / "state.json").read_text())["measures"] for p in list_checkpoints(straight / "checkpoints")]
    assert all(set(measures) == {"error"} for measures in best)


def test_it_is_reported(straight: Path, tmp_path: Path) -> None:
    run = read_run(straight, config_of)
    assert run.finished and run.config.method == VALUES["method"]
    main(["report", str(straight), "--out", str(tmp_path / "report.html"), "--debug"])
    assert "toy" in (tmp_path / "report.html").read_text()


def test_its_own_options_stand_on_the_command_line(config: Path, tmp_path: Path) -> None:
    main(
        ["train", str(config), "--data.samples", "32", "--schedule.samples", "64", "--output-dir", str(tmp_path / "r")]
    )
    assert json.loads((tmp_path / "r" / "run.json").read_text())["data"]["clips"] == 32
    assert load_config(str(config)).schedule.samples == 4096


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("diffmavl", "did you mean 'diffmavil'"),
        ("tests.support.toy.Nothing", "has no Nothing"),
        ("tests.support.no_such.Thing", "there is no module tests.support.no_such"),
        ("tests.support.toy.Line", "no subclass of"),
        (3, "takes a name"),
    ],
)
def test_a_method_that_is_none_is_said(method: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        config_of({**VALUES, "method": method})


def test_a_key_of_another_method_is_said() -> None:
    with pytest.raises(UsageError, match="unknown config key 'model'"):
        config_of({**VALUES, "model": {}})


def test_verbs_that_take_encoders_refuse_its_weights(straight: Path) -> None:
    with pytest.raises(UserError, match="method 'tests"):
        load_model(straight)


def test_defaults_of_the_protocol(straight: Path) -> None:
    method = make_method(config_of({**VALUES, "name": "toy", "output_dir": str(straight)}))
    assert isinstance(method, Regression)
    assert method.phases() == [Half(False), Half(True)]
    with pytest.raises(UsageError, match=r"schedule\.batch\.rule memory means nothing"):
        method.cost("memory")


def test_a_verb_that_knows_diffmavil_alone_says_so(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ledger", str(config)])
    assert stop.value.code == 2
    assert "is a config of method tests.support.toy.Regression" in capsys.readouterr().err


def test_its_flops_are_counted(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["flops", str(config)])
    assert "6 parameters" in capsys.readouterr().out
