"""Steps as CUDA graphs: the same bits as the steps that they capture."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import Tensor

from avpretrain.api import train
from avpretrain.config.schedules import Phase
from avpretrain.config.train import RunConfig
from avpretrain.core.errors import UsageError, UserError
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.training import loop
from avpretrain.training.build import make_optimizer, set_lr, why_uncaptured
from avpretrain.training.checkpoint import Progress, restore, take_snapshot, write_snapshot
from avpretrain.training.graphs import PhaseGraphs, first_cause, form_of
from avpretrain.training.metrics import read_metrics
from tests.support.tiny_runs import final_state, same_bits, tiny_config

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


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


@needs_gpu
def test_never_changes_no_bit(data: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Begun uncaptured and gone on with captured."""
    train(captured(data, tmp_path / "run", cuda_graphs="never"), stop_at=250)
    assert "no CUDA graphs (run.cuda_graphs never)" in capsys.readouterr().err
    train(captured(data, tmp_path / "run"))
    assert same_bits(final_state(straight), final_state(tmp_path / "run"))


@dataclass
class Batch:
    """A batch with a number beside its tensor."""

    x: Tensor
    factor: float

    def __len__(self) -> int:
        return len(self.x)


@needs_gpu
def test_numbers_that_change_are_not_frozen_into_a_graph(capsys: pytest.CaptureFixture[str]) -> None:
    graphs = PhaseGraphs(lambda batch, _: {"y": batch.x.sum() * batch.factor}, torch.cuda.Stream(), 1)
    ones = torch.ones(2, device="cuda")
    found = [graphs(Batch(ones, factor), Phase())["y"].item() for factor in (1.0, 1.0, 1.0, 3.0, 4.0)]
    assert found == [2.0, 2.0, 2.0, 6.0, 8.0]
    assert "batches of one phase differ (3.0 after 1.0)" in capsys.readouterr().err


@needs_gpu
def test_a_step_that_reads_the_device_is_named() -> None:
    """In a process of its own: a capture that failed leaves torch's allocator in doubt."""
    code = (
        "import torch; from avpretrain.config.schedules import Phase\n"
        "from avpretrain.training.graphs import PhaseGraphs\n"
        "g = PhaseGraphs(lambda x, _: {'y': x * x.sum().item()}, torch.cuda.Stream(), 1)\n"
        "for _ in range(2): g(torch.ones(2, device='cuda'), Phase())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "UserError: a step could not be captured as a CUDA graph: " in done.stderr
    assert "set run.cuda_graphs never" in done.stderr


def test_what_a_graph_fixes() -> None:
    def form(**values: Any) -> list[Any]:
        return form_of(values)

    x = torch.zeros(2, 3)
    assert form(x=x, names=["a"], n=1) == form(x=x + 1, names=["b"], n=1)
    assert form(x=x, n=1) != form(x=x, n=2)
    assert form(x=x) != form(x=x.double())
    assert form(x=x) != form(x=x[:1])
    assert form(x=[Batch(x, 1.0)]) != form(x=[Batch(x, 2.0)])
    assert form(x=x, y=None) != form(x=x, y=x)


def test_the_first_cause_is_told_and_memory_before_all() -> None:
    def raised(*errors: Exception) -> BaseException:
        """The last of errors that were raised while the one before each was being handled."""
        try:
            if len(errors) > 1:
                raised_before = raised(*errors[:-1])
                try:
                    raise raised_before
                except Exception:
                    raise errors[-1]  # noqa: B904 - as the end of a failed capture does
            raise errors[-1]
        except Exception as error:
            return error

    assert str(first_cause(raised(RuntimeError("item"), RuntimeError("invalidated")))) == "item"
    memory = torch.OutOfMemoryError("full")
    assert first_cause(raised(ValueError("before"), memory, RuntimeError("invalidated"))) is memory


def test_where_steps_are_captured() -> None:
    gpu, fsdp = torch.device("cuda"), DistributedType.FSDP
    assert why_uncaptured(RunConfig(), gpu) == ""
    assert why_uncaptured(RunConfig(cuda_graphs="always"), gpu, DistributedType.MULTI_GPU) == ""
    assert why_uncaptured(RunConfig(cuda_graphs="never"), gpu) == "run.cuda_graphs never"
    assert why_uncaptured(RunConfig(), gpu, fsdp) == "FSDP shards the weights"
    assert why_uncaptured(RunConfig(), torch.device("cpu")) == "there is no GPU"
    with pytest.raises(UsageError, match=r"run\.cuda_graphs always: FSDP shards the weights"):
        why_uncaptured(RunConfig(cuda_graphs="always"), gpu, fsdp)


def test_restoring_fills_the_learning_rate_s_own_tensors(data: Path, tmp_path: Path) -> None:
    """torch puts others in their place, on the CPU: a graph would read those when it runs, a step too late."""
    cfg = tiny_config(data, tmp_path)
    model = DiffMAViL(cfg.model)
    optimizer = make_optimizer(model, cfg.optim, tensor_lr=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = take_snapshot(model, optimizer, Progress(seen=4, step=1), cfg.model, "diffmavil")
    checkpoint = write_snapshot(tmp_path / "checkpoints", saved)

    other = DiffMAViL(cfg.model)
    again = make_optimizer(other, cfg.optim, tensor_lr=True)
    rates = [group["lr"] for group in again.param_groups]
    restore(checkpoint, other, again)
    assert all(group["lr"] is rate for group, rate in zip(again.param_groups, rates, strict=True))
    assert all(group["capturable"] for group in again.param_groups)
    set_lr(again, 0.5)
    assert [rate.item() for rate in rates] == [0.5, 0.5]
    kept = take_snapshot(other, again, Progress(seen=4, step=1), cfg.model, "diffmavil")
    assert same_bits(saved.model, kept.model)
    assert same_bits(saved.optimizer, kept.optimizer)


@pytest.mark.parametrize("lr", [1e-3, 1e30])
def test_the_graph_is_let_go_however_a_run_ends(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lr: float
) -> None:
    close, closed = loop.Trainer.close, []
    monkeypatch.setattr(loop.Trainer, "close", lambda trainer: closed.append(close(trainer)))
    cfg = tiny_config(data, tmp_path / "run", optim={"lr": lr, "warmup": 0.0, "clip_norm": 0.0})
    if lr < 1:
        train(cfg, stop_at=8)
    else:
        with pytest.raises(UserError, match="stopped being finite"):
            train(cfg)
    assert closed


def test_another_setting_goes_on_with_a_run(data: Path, tmp_path: Path) -> None:
    cfg = tiny_config(data, tmp_path / "run", run={"cuda_graphs": "never"})
    assert not train(cfg, stop_at=60).finished
    assert train(tiny_config(data, tmp_path / "run")).finished


def test_without_a_gpu_nothing_is_captured() -> None:
    assert why_uncaptured(RunConfig(), torch.device("cpu")) == "there is no GPU"
    with pytest.raises(UsageError, match=r"run\.cuda_graphs always: there is no GPU"):
        why_uncaptured(RunConfig(cuda_graphs="always"), torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL inside a graph takes two GPUs")
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
