"""The training engine: exact resume, checkpoints that survive anything, failures that say what to do."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from avpretrain.api import train
from avpretrain.config.reader import to_dict
from avpretrain.core.errors import UsageError, UserError
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model
from avpretrain.training.checkpoint import CheckpointWriter
from avpretrain.training.folders import find_weights, list_checkpoints
from avpretrain.training.guards import Preemption, sparing_children
from avpretrain.training.metrics import read_metrics
from tests.support.forks import forker
from tests.support.tiny_runs import final_state, same_bits, tiny_config


def test_a_run_writes_what_others_read(straight: Path) -> None:
    lines = read_metrics(straight)
    assert lines[-1]["seen"] >= 120
    assert {"loss", "inter", "reconstruction_audio", "batch_size", "flops_total", "data_wait_share"} <= lines[-1].keys()
    assert lines[0]["batch_size"] == 8
    assert lines[-1]["batch_size"] == 4
    description = json.loads((straight / "run.json").read_text())
    assert description["data"]["clips"] == 20
    assert description["versions"]["torch"] == torch.__version__.split("+")[0]
    assert find_weights(straight) == straight / "model"
    assert isinstance(load_model(straight), DiffMAViL)


def test_the_final_model_is_the_last_checkpoint(straight: Path) -> None:
    last = list_checkpoints(straight / "checkpoints")[-1]
    for a, b in zip(load_model(straight).parameters(), load_model(last).parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("stop_at", [8, 30, 50, 90])
def test_resume_is_bit_exact(data: Path, straight: Path, tmp_path: Path, stop_at: int) -> None:
    cfg = tiny_config(data, tmp_path / "run")
    stopped = train(cfg, stop_at=stop_at)
    assert not stopped.finished and stopped.progress.seen >= stop_at
    assert train(cfg).finished
    assert same_bits(final_state(straight), final_state(tmp_path / "run"))
    assert [line["seen"] for line in read_metrics(tmp_path / "run")][-1] == read_metrics(straight)[-1]["seen"]


def test_workers_change_nothing(data: Path, straight: Path, tmp_path: Path) -> None:
    train(tiny_config(data, tmp_path / "run", data={"num_workers": 2}))
    assert same_bits(final_state(straight), final_state(tmp_path / "run"))


def test_a_finished_run_is_left_alone(data: Path, straight: Path) -> None:
    before = final_state(straight)
    assert train(tiny_config(data, straight)).finished
    assert same_bits(before, final_state(straight))


def test_another_config_or_other_data_in_the_same_folder_is_refused(data: Path, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"optim\.lr is 0\.001 there and 0\.01 here"):
        train(tiny_config(data, straight, optim={"lr": 0.01}))
    from tests.support.tiny_datasets import Spec, make_dataset

    other = make_dataset(tmp_path / "other", [Spec(seconds=1.0, pitch=7) for _ in range(20)])
    with pytest.raises(UsageError, match="other data"):
        train(tiny_config(other, straight))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        train(tiny_config(data, tmp_path / "full"))


def _write_config(cfg: TrainConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(to_dict(cfg)))
    return path


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sigkill_at_twenty_random_moments(data: Path, straight: Path, tmp_path: Path) -> None:
    """Checkpoints at every step, and moments counted in changes of their files: many kills fall into the writing."""
    cfg = tiny_config(data, tmp_path / "run", run={"checkpoint_every": 4})
    config = _write_config(cfg, tmp_path / "config.yaml")
    checkpoints = cfg.run_dir / "checkpoints"
    rng = random.Random(0)
    kills = halfway = 0
    with forker(tmp_path, "avpretrain.cli.train", "tests.support.preload") as forks:
        while kills < 20:
            if forks.start("train", config).kill_after(checkpoints, rng.randint(1, 20)):
                kills += 1
                halfway += bool(list(checkpoints.glob(".*.tmp")))
            else:  # it came to its end in spite of the kills before: compare, and begin anew
                assert same_bits(final_state(straight), final_state(cfg.run_dir))
                shutil.rmtree(cfg.run_dir)
    assert halfway, "no kill fell into the writing of a checkpoint; the test proves less than it says"
    assert train(cfg).finished
    assert same_bits(final_state(straight), final_state(cfg.run_dir))
    assert not list(checkpoints.glob(".*.tmp"))


def test_signals_to_a_whole_job_spare_the_compilers_processes() -> None:
    with Preemption().listening() as preemption:
        with sparing_children():
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            signal.raise_signal(signal.SIGTERM)
            assert preemption.received is None
        assert preemption.received == "SIGTERM"
    child.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.kill()
    child.wait()


def test_preemption_saves_and_hands_the_signals_back(data: Path, tmp_path: Path) -> None:
    cfg = tiny_config(data, tmp_path / "run", schedule={"samples": 10_000})
    metrics = tmp_path / "run" / "metrics.jsonl"

    def signal_once_it_trains() -> None:
        while not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=signal_once_it_trains, daemon=True)
    thread.start()
    outcome = train(cfg)
    thread.join()
    assert (outcome.finished, outcome.stopped_by) == (False, "SIGTERM")
    assert int(list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name) == outcome.progress.seen
    assert signal.getsignal(signal.SIGTERM) == handler
    further = train(cfg, stop_at=outcome.progress.seen + 1)
    assert further.progress.seen > outcome.progress.seen


@pytest.mark.slow
def test_a_signal_to_the_whole_job_finds_the_loaders_alive(data: Path, tmp_path: Path) -> None:
    """Schedulers signal every process of a job, and loader processes that died of it would leave the loop waiting."""
    cfg = tiny_config(data, tmp_path / "run", data={"num_workers": 2}, schedule={"samples": 10_000})
    command = [sys.executable, "-m", "avpretrain.train", str(_write_config(cfg, tmp_path / "config.yaml"))]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        while not (metrics.is_file() and metrics.stat().st_size):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        said, complained = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, complained[-2000:]
    assert "stopped by SIGTERM" in said and "the same command resumes from there" in said
    assert list_checkpoints(tmp_path / "run" / "checkpoints")


def test_a_damaged_checkpoint_is_passed_over(
    data: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny_config(data, tmp_path / "run")
    train(cfg, stop_at=60)
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (newest / "model.safetensors").write_bytes(weights)
    assert train(cfg).finished
    assert f"{newest.name} is damaged" in capsys.readouterr().out
    assert same_bits(final_state(straight), final_state(tmp_path / "run"))


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_before_the_weights_do(data: Path, tmp_path: Path) -> None:
    cfg = tiny_config(data, tmp_path / "run", optim={"lr": 1e30, "warmup": 0.0, "clip_norm": 0.0})
    with pytest.raises(UserError, match="stopped being finite at step"):
        train(cfg)
    kept = tmp_path / "run" / "failure"
    batch = json.loads((kept / "batch.json").read_text())
    assert len(batch["keys"]) == batch["step"]["batch_size"]
    weights = load_model(list_checkpoints(kept)[-1])
    assert all(torch.isfinite(p).all() for p in weights.parameters())


def test_a_full_disk_is_said_and_harms_no_checkpoint(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import avpretrain.training.checkpoint as checkpoint

    cfg = tiny_config(data, tmp_path / "run")
    written, real = [], checkpoint.save_file

    def full_after_two(*args: object, **kwargs: object) -> None:
        if len(written) >= 4:  # two files a checkpoint
            raise OSError(28, "No space left on device")
        written.append(args)
        real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save_file", full_after_two)
    with pytest.raises(UserError, match=r"No space left on device.*last good one"):
        train(cfg)
    monkeypatch.undo()
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 2
    assert train(cfg).finished
    assert same_bits(final_state(straight), final_state(tmp_path / "run"))


def test_old_checkpoints_are_pruned(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, tmp_path / "run", run={"keep_checkpoints": 2, "keep_best": "none"}))
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 2


def test_weights_that_are_not_there_or_do_not_fit(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights in"):
        find_weights(tmp_path)
    shutil.copytree(straight / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="is damaged"):
        load_model(tmp_path / "model")


def test_a_hang_becomes_an_error_with_a_stack(tmp_path: Path) -> None:
    code = (
        "import time\nfrom avpretrain.training.guards import Watchdog\n"
        "def stuck():\n    time.sleep(3600)\n"
        "with Watchdog(0.5):\n    stuck()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "stuck" in done.stderr


def test_the_writer_keeps_its_error_for_the_next_call(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "no" / "such", keep=1)
    (tmp_path / "no").write_text("a file where a folder should be")
    from avpretrain.training.checkpoint import Progress, Snapshot
    from tests.support.tiny_models import tiny

    writer.save(Snapshot(Progress(seen=1), {"a": torch.zeros(1)}, {"b": torch.zeros(1)}, tiny()))
    with pytest.raises(UserError, match="could not write a checkpoint"):
        writer.wait()
    writer.wait()


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_ranks_that_can_not_share_a_batch_are_refused(data: Path, tmp_path: Path) -> None:
    from avpretrain.config.schedules import Step
    from avpretrain.data.read.dataset import train_loader

    cfg = tiny_config(data, tmp_path)
    step = Step(index=0, seen=0, batch_size=8, lr=0.1)
    with pytest.raises(UsageError, match="does not divide among 3 ranks"):
        next(iter(train_loader(cfg.data, cfg.model.input, 0, [step], rank=0, world=3)))
