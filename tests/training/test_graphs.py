"""Steps as CUDA graphs: the same bits as the steps that they capture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from avpretrain.api import train
from avpretrain.core.errors import UsageError
from avpretrain.training import loop
from avpretrain.training.metrics import read_metrics
from tests.support.tiny_runs import final_state, same_bits, tiny_config, tiny_data

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data") / "shards")


LONG = {"samples": 600}
"""Twenty-odd steps a phase, more than the steps before the capture."""


def captured(data: Path, folder: Path, **run: Any) -> Any:
    return tiny_config(data, folder, schedule=LONG, run={"cuda_graphs": "always", **run})


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    train(captured(data, folder))
    return folder


@needs_gpu
def test_a_captured_run_is_the_uncaptured_one(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "WARM_UP", 1 << 30)
    train(captured(data, tmp_path / "run"))
    assert same_bits(final_state(straight), final_state(tmp_path / "run"))
    ours, theirs = ([line["loss"] for line in read_metrics(run)] for run in (straight, tmp_path / "run"))
    assert ours == theirs


@needs_gpu
@pytest.mark.parametrize("stop_at", [100, 250, 430])
def test_a_captured_run_resumes_to_the_bit(data: Path, straight: Path, tmp_path: Path, stop_at: int) -> None:
    cfg = captured(data, tmp_path / "run")
    assert not train(cfg, stop_at=stop_at).finished
    assert train(cfg).finished
    assert same_bits(final_state(straight), final_state(tmp_path / "run"))


@needs_gpu
def test_activation_checkpointing_can_be_captured(data: Path, straight: Path, tmp_path: Path) -> None:
    train(captured(data, tmp_path / "run", activation_checkpointing=True))
    ours, theirs = (read_metrics(run)[-1]["loss"] for run in (straight, tmp_path / "run"))
    assert ours == pytest.approx(theirs, rel=1e-3)


@needs_gpu
def test_a_captured_run_stops_at_what_is_not_finite(data: Path, tmp_path: Path) -> None:
    cfg = tiny_config(data, tmp_path / "run", schedule=LONG, run={"cuda_graphs": "always"}, optim={"lr": 1e12})
    with pytest.raises(Exception, match="stopped being finite at step"):
        train(cfg)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
def test_without_a_gpu_nothing_is_captured(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.cuda_graphs always: there is no GPU"):
        train(captured(data, tmp_path / "run"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks_captured_are_two_ranks_uncaptured_and_end(data: Path, tmp_path: Path) -> None:
    """NCCL inside the graph; a process group that a graph refers to would keep the ranks from ending."""
    states = []
    for warm_up in (12, 1 << 30):
        folder = tmp_path / f"run{warm_up}"
        code = (
            "import sys; from pathlib import Path; from avpretrain import api; from avpretrain.training import loop\n"
            "from tests.support.tiny_runs import tiny_config\n"
            f"loop.WARM_UP_RANKS = {warm_up}\n"
            "cfg = tiny_config(Path(sys.argv[1]), Path(sys.argv[2]), schedule={'samples': 600},"
            " run={'cuda_graphs': 'always'})\n"
            "assert api.train(cfg).finished\n"
        )
        script = tmp_path / "train.py"
        script.write_text(code)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
        subprocess.run([*command, str(data), str(folder)], cwd=root, env=environment, check=True, timeout=120)
        states.append(final_state(folder))
    assert same_bits(*states)
