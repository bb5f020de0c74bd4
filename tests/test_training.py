"""The training engine: exact resume, checkpoints that survive anything, failures that say what to do."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from avpretrain.config import TrainConfig
from avpretrain.configfile import to_dict
from avpretrain.errors import UsageError, UserError
from avpretrain.models.diffmavil import DiffMAViL
from avpretrain.training.checkpoint import CheckpointWriter, find_weights, list_checkpoints, load_model
from avpretrain.training.loop import train
from avpretrain.training.metrics import read_metrics
from tests.tiny_runs import final_state, same_bits, tiny_config, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert train(tiny_config(data, folder)).finished
    return folder


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
    from tests.tiny_datasets import Spec, make_dataset

    other = make_dataset(tmp_path / "other", [Spec(seconds=1.0, pitch=7) for _ in range(20)])
    with pytest.raises(UsageError, match="other data"):
        train(tiny_config(other, straight))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        train(tiny_config(data, tmp_path / "full"))


# --- killed ----------------------------------------------------------------------------------------------------------


def _train_quietly(cfg: TrainConfig) -> None:
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    train(cfg)


@pytest.fixture(scope="module")
def server() -> Iterator[multiprocessing.context.ForkServerContext]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_training"])
    yield context


@pytest.mark.slow
def test_sigkill_at_twenty_random_moments(
    server: multiprocessing.context.ForkServerContext, data: Path, straight: Path, tmp_path: Path
) -> None:
    """Checkpoints at every step, so that many kills fall into the writing of one."""
    cfg = tiny_config(data, tmp_path / "run", run={"checkpoint_every": 4})
    rng = random.Random(0)
    kills = halfway = 0
    while kills < 20:
        process = server.Process(target=_train_quietly, args=(cfg,))
        process.start()
        deadline = time.monotonic() + 60
        checkpoints = tmp_path / "run" / "checkpoints"
        had = len(list_checkpoints(checkpoints))
        while len(list_checkpoints(checkpoints)) == had and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.12))
        process.kill()
        process.join()
        kills += 1
        halfway += bool(list(checkpoints.glob(".*.tmp")))
        if process.exitcode == 0:  # it had ended before the kill: begin anew, the kills go on
            assert same_bits(final_state(straight), final_state(tmp_path / "run"))
            shutil.rmtree(tmp_path / "run")
    assert halfway, "no kill fell into the writing of a checkpoint; the test proves less than it says"
    assert train(cfg).finished
    assert same_bits(final_state(straight), final_state(tmp_path / "run"))
    assert not list((tmp_path / "run" / "checkpoints").glob(".*.tmp"))


def test_preemption_saves_and_hands_the_signals_back(data: Path, tmp_path: Path) -> None:
    cfg = tiny_config(data, tmp_path / "run", schedule={"samples": 1_000_000})
    metrics = tmp_path / "run" / "metrics.jsonl"

    def signal_once_it_trains() -> None:
        while not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signal_once_it_trains, daemon=True)
    thread.start()
    outcome = train(cfg)
    thread.join()
    assert (outcome.finished, outcome.stopped_by) == (False, "SIGTERM")
    assert int(list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name) == outcome.progress.seen
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    further = train(cfg, stop_at=outcome.progress.seen + 1)
    assert further.progress.seen > outcome.progress.seen


@pytest.mark.slow
def test_a_signal_to_the_whole_job_finds_the_loaders_alive(data: Path, tmp_path: Path) -> None:
    """Schedulers signal every process of a job, and loader processes that died of it would leave the loop waiting."""
    cfg = tiny_config(data, tmp_path / "run", data={"num_workers": 2}, schedule={"samples": 1_000_000})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(cfg)))
    command = [sys.executable, "-m", "avpretrain.train", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 0, complained[-2000:]
    assert "stopped by SIGTERM" in said and "the same command goes on from there" in said
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
    with pytest.raises(UserError, match="damaged or does not fit"):
        load_model(tmp_path / "model")


def test_a_hang_becomes_an_error_with_a_stack(tmp_path: Path) -> None:
    code = (
        "import time\nfrom avpretrain.training.guards import Watchdog\n"
        "def stuck():\n    time.sleep(60)\n"
        "with Watchdog(0.5):\n    stuck()\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "stuck" in done.stderr
    assert time.monotonic() - started < 50


def test_the_writer_keeps_its_error_for_the_next_call(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "no" / "such", keep=1)
    (tmp_path / "no").write_text("a file where a folder should be")
    from avpretrain.training.checkpoint import Progress, Snapshot
    from tests.tiny_models import tiny

    writer.save(Snapshot(Progress(seen=1), {"a": torch.zeros(1)}, {"b": torch.zeros(1)}, tiny()))
    with pytest.raises(UserError, match="could not write a checkpoint"):
        writer.wait()
    writer.wait()


# --- ranks -----------------------------------------------------------------------------------------------------------


def _launch(cfg: TrainConfig, folder: Path, ranks: int) -> None:
    """Trains under `accelerate launch`, as users do."""
    path = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(to_dict(dataclasses.replace(cfg, output_dir=str(folder / "run")))))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(ranks),
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
               "-m", "avpretrain.train", str(path), "--debug"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_ranks_train_as_one(data: Path, straight: Path, tmp_path: Path) -> None:
    """Same global batches, losses and weights to float tolerance; checkpoints move between one rank and two."""
    cfg = tiny_config(data, tmp_path / "one")
    _launch(cfg, tmp_path / "two", ranks=2)
    one, two = read_metrics(straight), read_metrics(tmp_path / "two" / "run")
    assert [line["seen"] for line in one] == [line["seen"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for name, value in final_state(straight).items():
        assert torch.allclose(value, final_state(tmp_path / "two" / "run")[name], atol=1e-5, rtol=1e-3), name

    moved = tmp_path / "two" / "run"
    for checkpoint in list_checkpoints(moved / "checkpoints")[2:]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(moved / "model")
    assert train(dataclasses.replace(cfg, output_dir=str(moved))).finished
    for name, value in final_state(straight).items():
        assert torch.allclose(value, final_state(moved)[name], atol=1e-5, rtol=1e-3), name


def test_ranks_that_can_not_share_a_batch_are_refused(data: Path, tmp_path: Path) -> None:
    from avpretrain.data.dataset import train_loader
    from avpretrain.schedules import Step

    cfg = tiny_config(data, tmp_path)
    step = Step(index=0, seen=0, batch_size=8, audio_ratio=0.8, video_ratio=0.8, lr=0.1)
    with pytest.raises(UsageError, match="does not divide among 3 ranks"):
        next(iter(train_loader(cfg.data, cfg.model.input, 0, [step], rank=0, world=3)))
