"""Commands that fail, or are killed, end within seconds, with one clear line and no process left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from avpretrain.config.reader import to_dict
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.model import DiffMAViL
from tests.support.forks import Forker, forker
from tests.support.servers import Shards, serving
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_runs import tiny_config

LIMIT = 15.0
"""Seconds in which every command ends that fails."""
SLACK = 3.0
"""How many times slower a loaded machine may be than the limit allows for."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told by their session in /proc")


def specs(split: str, count: int) -> list[Spec]:
    return [Spec(seconds=1.0, size=(32, 40), split=split, label="ab"[i % 2]) for i in range(count)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "good", specs("train", 40) + specs("test", 20), per_shard=20)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `good`, with every clip's media overwritten: the manifest is as it was."""
    root = make_dataset(tmp_path_factory.mktemp("data") / "bad", specs("train", 40) + specs("test", 20), per_shard=20)
    for shard in root.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        data[1024:] = os.urandom(len(data) - 1024)
        shard.write_bytes(data)
    return root


def config(shards: str | Path, folder: Path, **data: object) -> Path:
    """The file of a run that would take minutes; a longer one is planned for seconds before it begins."""
    model = {"input": {"audio_frames": 64, "mels": 32, "video_frames": 4, "video_fps": 4.0, "video_size": 32,
                       "audio_mean": -6.0, "audio_std": 4.0}}  # fmt: skip
    cfg = tiny_config(Path("-"), folder / "run", model=model, schedule={"samples": 50_000}, data=data)
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, shards=(str(shards),)))
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(cfg)))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    cfg: TrainConfig = tiny_config(folder, folder / "run")
    known = dataclasses.replace(cfg.model.input, audio_mean=-6.0, audio_std=4.0)
    DiffMAViL(dataclasses.replace(cfg.model, input=known)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    modules = [f"avpretrain.cli.{verb}" for verb in ("train", "probe", "finetune", "retrieve", "embed", "shards")]
    more = ("tests.support.preload", "avpretrain.evaluation.finetune.run", "avpretrain.evaluation.probe.run")
    with forker(tmp_path_factory.mktemp("said"), *modules, *more) as found:
        yield found


def of_session(session: int) -> list[str]:
    """Living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:200])
    return found


def wait_until_gone(session: int, seconds: float) -> None:
    end = time.monotonic() + seconds * SLACK
    while left := of_session(session):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def fails(forks: Forker, *args: object, says: str, status: int = 1, limit: float = LIMIT) -> str:
    """Runs a command that must fail in time; returns what it said."""
    command = forks.start(*args)
    end = time.monotonic() + limit * SLACK
    while command.poll() is None:
        if time.monotonic() > end:
            command.kill()
            raise AssertionError(f"still running after {limit * SLACK:g} s:\n{command.log.read_text()[-2000:]}")
        time.sleep(0.02)
    said = command.log.read_text()
    assert command.status == status, said
    lines = [line for line in said.splitlines() if line.startswith("avpretrain: ")]
    assert "Traceback" not in said, said
    assert lines and says in lines[-1], said
    wait_until_gone(command.pid, 5)
    return said


# --- data that can't be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "workers"), [("random", 2), ("stream", 0)])
def test_training_on_nothing_but_damaged_clips(
    forks: Forker, bad: Path, tmp_path: Path, mode: str, workers: int
) -> None:
    fails(forks, "train", config(bad, tmp_path, mode=mode, num_workers=workers), says="16 clips in a row")


@pytest.mark.parametrize("verb", ["probe", "finetune", "retrieve"])
def test_evaluating_on_nothing_but_damaged_clips(
    forks: Forker, bad: Path, checkpoint: Path, tmp_path: Path, verb: str
) -> None:
    finetune = ["--modality", "audio", "--epochs", "1", "--warmup-epochs", "0"]
    options = {"probe": ["--modality", "audio"], "finetune": finetune, "retrieve": []}
    label = [] if verb == "retrieve" else ["--label", "class"]
    out = tmp_path / "out.json"
    fails(forks, verb, checkpoint, bad, *label, *options[verb], "--out", out, "--num-workers", 2, says="be read")
    assert not out.exists()


# --- things that are no files ----------------------------------------------------------------------------------------


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder of things that open like files and never end, block, or change as they are read."""
    folder = tmp_path / "strange"
    folder.mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "proc.mp4").symlink_to("/proc/self/pagemap")
    return folder


@pytest.mark.parametrize("name", ["pipe.mp4", "zero.mp4", "proc.mp4"])
def test_embed_takes_files_alone(forks: Forker, checkpoint: Path, strange: Path, tmp_path: Path, name: str) -> None:
    fails(forks, "embed", checkpoint, strange / name, "--out", tmp_path / "v.npz", says="file")
    assert not (tmp_path / "v.npz").exists()


def test_sharding_lists_what_is_no_file(forks: Forker, strange: Path, tmp_path: Path) -> None:
    fails(forks, "shards", strange, tmp_path / "out", "--workers", 1, says="not an ordinary file")


@pytest.mark.parametrize("name", ["pipe"])
def test_shards_that_are_no_files(forks: Forker, good: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "set"
    copy.mkdir()
    for path in good.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    for shard in copy.glob("train-*.tar"):
        shard.unlink()
        os.mkfifo(shard) if name == "pipe" else shard.symlink_to(name)
    fails(forks, "train", config(copy, tmp_path, num_workers=2), says="file")


def test_a_pickle_that_holds_itself(forks: Forker, tmp_path: Path) -> None:
    state: dict[str, object] = {}
    state["model"] = state
    torch.save(state, tmp_path / "loop.pth")
    with (tmp_path / "loop.pkl").open("wb") as file:
        pickle.dump(state, file)
    for name in ("loop.pth", "loop.pkl"):
        fails(forks, "import", tmp_path / name, tmp_path / "out", "--format", "mae", says=name)
    assert not (tmp_path / "out").exists()


# --- servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "mode"), [("silent", "random"), ("missing", "stream"), ("wrong", "random"), ("short", "stream")]
)
def test_a_server_that_gives_no_clips(forks: Forker, good: Path, tmp_path: Path, how: Shards, mode: str) -> None:
    with serving(good, shards=how) as (url, requests):
        path = config(url, tmp_path, num_workers=1, mode=mode, request_timeout=1.0, cache_dir=str(tmp_path / "cache"))
        said = fails(forks, "train", path, says="")
        assert len(requests) < 400, "a batch gives up once"
    assert url in said or "clips in a row" in said


@pytest.mark.parametrize("mode", ["random", "stream"])
def test_a_server_that_is_gone(forks: Forker, tmp_path: Path, mode: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    fails(forks, "train", config(url, tmp_path, num_workers=1, mode=mode, request_timeout=1.0), says=url)


# --- killed ----------------------------------------------------------------------------------------------------------


def trains(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


@pytest.mark.parametrize("mode", ["random", "stream"])
def test_a_killed_trainer_leaves_no_process(forks: Forker, good: Path, tmp_path: Path, mode: str) -> None:
    command = forks.start("train", config(good, tmp_path, num_workers=2, mode=mode))
    while not trains(tmp_path / "run"):
        assert command.poll() is None, command.log.read_text()
        time.sleep(0.05)
    assert len(of_session(command.pid)) > 2, "a trainer and its loaders"
    assert command.kill()
    wait_until_gone(command.pid, 10)


@contextlib.contextmanager
def two_ranks(path: Path, run: Path) -> Iterator[tuple[subprocess.Popen[str], dict[int, psutil.Process], set[int]]]:
    """A training on two ranks of torchrun, the processes of the ranks, and all of its sessions, once it trains."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
               "avpretrain.train", str(path)]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], env=environment, start_new_session=True, text=True,
        stdout=subprocess.DEVNULL, stderr=(run.parent / "said.txt").open("w"),
    )  # fmt: skip
    ranks: dict[int, psutil.Process] = {}
    try:
        while not trains(run):
            assert launcher.poll() is None, (run.parent / "said.txt").read_text()
            time.sleep(0.1)
        family = psutil.Process(launcher.pid)
        ranks = {int(child.environ()["RANK"]): child for child in family.children() if "RANK" in child.environ()}
        sessions = {os.getsid(process.pid) for process in (family, *family.children(recursive=True))}
        yield launcher, ranks, sessions
    finally:
        for process in (*ranks.values(), launcher):
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                os.killpg(process.pid, signal.SIGKILL)
        launcher.wait()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0])
def test_a_killed_rank_takes_the_others_with_it(good: Path, tmp_path: Path, rank: int) -> None:
    with two_ranks(config(good, tmp_path, num_workers=1), tmp_path / "run") as (launcher, ranks, sessions):
        ranks[rank].kill()
        assert launcher.wait(LIMIT * SLACK) != 0
        for session in sessions:
            wait_until_gone(session, 10)
    said = (tmp_path / "said.txt").read_text()
    assert said.count("avpretrain: rank ") <= 1, "one line at most from the rank that is left"
    assert "/avpretrain/" not in said, "no traceback of ours"


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_rank(good: Path, tmp_path: Path) -> None:
    with two_ranks(config(good, tmp_path, num_workers=1), tmp_path / "run") as (launcher, _, sessions):
        launcher.kill()
        launcher.wait()
        for session in sessions:
            wait_until_gone(session, 10)
    said = (tmp_path / "said.txt").read_text()  # whichever rank 0 sees first
    assert "the launcher of this run is gone" in said or "another rank of this run has ended" in said, said
