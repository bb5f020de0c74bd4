"""Several ranks train as one: equal losses and gradients, equal plans, and checkpoints that move between them."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from avpretrain.api import train
from avpretrain.config.schedules import Step
from avpretrain.config.train import TrainConfig
from avpretrain.core.errors import UsageError
from avpretrain.methods.load import make_method
from avpretrain.training.build import check_ranks, make_accelerator
from avpretrain.training.folders import list_checkpoints
from avpretrain.training.loop import Trainer
from avpretrain.training.memory_probe import measured_memory
from avpretrain.training.metrics import read_metrics
from tests.support.ranks import FSDP, run_ranks, said
from tests.support.tiny_runs import final_state, same_bits, tiny_config, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run on one rank."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert train(tiny_config(data, folder)).finished
    return folder


def test_the_mean_over_ranks_is_the_global_batch(data: Path, tmp_path: Path) -> None:
    """One step of the real loop: losses and clipped gradients of two ranks against those of one."""
    assert run_ranks(tmp_path / "two", one_step, tiny_config(data, tmp_path / "run2"), tmp_path) == [0, 0], said(
        tmp_path / "two"
    )
    one_step(tiny_config(data, tmp_path / "run1"), tmp_path)
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("0of1.pt", "0of2.pt", "1of2.pt"))
    for rank in two:
        assert rank["step"] == one["step"]
        assert rank["clips"] == one["clips"] // 2
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-6)
        assert rank["gradients"].keys() == one["gradients"].keys()
        for name, gradient in one["gradients"].items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(rank["gradients"][name], gradient, atol=1e-6, rtol=0, msg=name)


def one_step(cfg: TrainConfig, folder: Path) -> None:
    """Takes the first step of a run, keeping the gradients that its optimiser was given."""
    accelerator, method = make_accelerator(cfg), make_method(cfg)
    method.open()
    trainer = Trainer(method, accelerator)
    kept: dict[str, torch.Tensor] = {}

    def keep(*args: object) -> None:
        model = accelerator.unwrap_model(trainer.model)
        kept.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer.optimizer.step = keep
    for step, raw, waited in trainer._batches(trainer.plan[:1]):
        trainer._step(step, raw, waited)
        result = {
            "step": dataclasses.asdict(step),
            "clips": len(raw),
            "losses": trainer.window.read(accelerator).means,
            "gradients": kept,
        }
    torch.save(result, folder / f"{accelerator.process_index}of{accelerator.num_processes}.pt")


def test_ranks_agree_on_what_one_of_them_measured(data: Path, tmp_path: Path) -> None:
    cfg = tiny_config(data, tmp_path / "run")
    batch = dataclasses.replace(cfg.schedule.batch, rule="memory")
    cfg = dataclasses.replace(cfg, schedule=dataclasses.replace(cfg.schedule, batch=batch))
    assert run_ranks(tmp_path / "two", measure, cfg, tmp_path) == [0, 0], said(tmp_path / "two")
    first, second = ((tmp_path / f"rows{rank}").read_text() for rank in range(2))
    assert first == second
    assert "1000.0" in first, "rank 0 measured 1000 bytes a clip, rank 1 measured 2000"


def measure(cfg: TrainConfig, folder: Path) -> None:
    accelerator = Accelerator()
    rank = accelerator.process_index
    batch = measured_memory(make_method(cfg), accelerator, lambda clips, phase: 1000 * clips * (rank + 1))
    (folder / f"rows{rank}").write_text(str(batch.bytes_per_clip))


@pytest.mark.parametrize(
    ("env", "ranks", "kind", "fsdp2", "says"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, 1, "NO", False, "made no group of them"),
        ({}, 2, "FSDP", False, "launch with --fsdp_version 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, 2, "MULTI_CPU", False, "on GPUs only"),
        ({"ACCELERATE_USE_FSDP": "true"}, 2, "FSDP", True, ""),
        ({"ACCELERATE_USE_FSDP": "true"}, 1, "NO", False, ""),
    ],
)
def test_launches_that_would_train_otherwise_than_asked_are_refused(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], ranks: int, kind: str, fsdp2: bool, says: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    class Launched(Accelerator):
        num_processes, distributed_type, is_fsdp2 = ranks, DistributedType(kind), fsdp2

        def __init__(self) -> None: ...

    accelerator = Launched()
    if not says:
        check_ranks(accelerator, multiple=4)
        return
    with pytest.raises(UsageError, match=says):
        check_ranks(accelerator, multiple=4)


# --- checkpoints that move -------------------------------------------------------------------------------------------


def windows(lines: list[dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    """Log lines by the first and last clip that each is a mean over; a stop begins a new one."""
    starts = [0, *(line["seen"] for line in lines)]
    return {(start, line["seen"]): line for start, line in zip(starts, lines, strict=False)}


def check_like_one_rank(run: Path, straight: Path) -> None:
    """Same sequence of global batches, same losses and weights to float tolerance."""
    ours, theirs = windows(read_metrics(run)), windows(read_metrics(straight))
    both = [(line, theirs[window]) for window, line in ours.items() if window in theirs]
    assert len(both) >= 8, "log lines over the same clips"
    for a, b in both:
        assert (a["step"], a["batch_size"], a["audio_mask_ratio"]) == (
            b["step"],
            b["batch_size"],
            b["audio_mask_ratio"],
        )
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    moved, stayed = final_state(run), final_state(straight)
    assert moved.keys() == stayed.keys()
    # All weights at once: keys' biases have no gradient but rounding, which Adam makes as large as any other.
    weights = [name for name in stayed if not name.startswith("optimizer.")]
    ours_P, theirs_P = (torch.cat([state[name].flatten() for name in weights]) for state in (moved, stayed))
    assert (ours_P - theirs_P).norm() <= 1e-4 * theirs_P.norm()


def train_sharded(cfg: TrainConfig, stop_at: int) -> None:
    """As `train`, by ranks each of which holds half of the weights."""
    real = Trainer._step

    def step(self: Trainer, *args: Any) -> None:
        real(self, *args)
        weight = self.model.audio_encoder.blocks[0].mlp.fc1.weight
        assert isinstance(weight, DTensor) and 2 * weight.to_local().numel() == weight.numel()

    Trainer._step = step  # type: ignore[method-assign]
    train(cfg, stop_at)


@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, FSDP], ids=["ddp", "fsdp"])
def test_two_ranks_one_and_two_again(data: Path, straight: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """Stopped and taken up with another number of ranks, at changes of the batch size; weights are whole throughout."""
    cfg = tiny_config(data, tmp_path / "run")
    assert run_ranks(tmp_path / "a", train_sharded if env else train, cfg, 40, env=env) == [0, 0], said(tmp_path / "a")
    first = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert first.name == f"{40:012d}"
    assert train(cfg, stop_at=80).progress.seen == 80
    assert run_ranks(tmp_path / "b", train, cfg, env=env) == [0, 0], said(tmp_path / "b")
    check_like_one_rank(tmp_path / "run", straight)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, FSDP], ids=["ddp", "fsdp"])
def test_two_ranks_in_bf16_train_as_one(data: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """Losses within what bf16 rounds away; weights are float32 wherever they are kept."""
    lines = []
    for name, ranks in (("one", 1), ("two", 2)):
        cfg = tiny_config(data, tmp_path / name, run={"precision": "bf16"})
        of_ranks = env if ranks > 1 else {}
        assert run_ranks(tmp_path / f"{name}_said", train, cfg, ranks=ranks, env=of_ranks) == [0] * ranks, said(
            tmp_path / f"{name}_said"
        )
        lines.append(read_metrics(tmp_path / name))
        assert {value.dtype for value in final_state(tmp_path / name).values()} == {torch.float32}
    for a, b in zip(*lines, strict=True):
        assert (a["step"], a["seen"], a["batch_size"]) == (b["step"], b["seen"], b["batch_size"])
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)


@pytest.mark.slow
def test_killed_at_a_change_of_batch_size(data: Path, straight: Path, tmp_path: Path) -> None:
    """Two ranks die by SIGKILL in the first smaller batch; one goes on. Alone, the result is the same to the bit."""
    cfg = tiny_config(data, tmp_path / "alone", run={"checkpoint_every": 8})
    assert run_ranks(tmp_path / "a", train_until_killed, cfg, ranks=1) == [-signal.SIGKILL], said(tmp_path / "a")
    assert train(cfg).finished
    assert same_bits(final_state(tmp_path / "alone"), final_state(straight))
    cfg = tiny_config(data, tmp_path / "two", run={"checkpoint_every": 8})
    assert run_ranks(tmp_path / "b", train_until_killed, cfg) == [-signal.SIGKILL] * 2, said(tmp_path / "b")
    assert train(cfg).finished
    check_like_one_rank(tmp_path / "two", straight)


def train_until_killed(cfg: TrainConfig) -> None:
    real, sizes = Trainer._step, set()

    def step_or_die(self: Trainer, step: Step, *args: object) -> None:
        sizes.add(step.batch_size)
        if len(sizes) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, step, *args)  # type: ignore[arg-type]

    Trainer._step = step_or_die  # type: ignore[assignment]
    train(cfg)
