"""A run folder with something wrong in it: resuming ends in the same bytes, or in one line that says what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from avpretrain.api import train
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.locks import LOCK_NAME, locked
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.training.folders import list_checkpoints
from avpretrain.training.metrics import MetricsLog, read_metrics
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_runs import tiny_config

OLD, BEFORE, NEWEST = (f"checkpoints/{seen:012d}" for seen in (8, 16, 24))
PARTS = ("state.json", "model.safetensors", "optimizer.safetensors", "config.json")
FILES = ["config.yaml", "run.json", "metrics.jsonl", f"{OLD}/state.json", *(f"{NEWEST}/{p}" for p in PARTS)]
UNREAD = [f"{OLD}/{p}" for p in PARTS[1:]]
"""What resuming has no use for."""


def config(data: Path, folder: Path) -> TrainConfig:
    """Checkpoints at 8, 16, 24 and 32 clips."""
    schedule = {"samples": 32, "batch": {"size": 4, "multiple": 4}}
    return tiny_config(data, folder, schedule=schedule, run={"checkpoint_every": 8, "log_every": 1})


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stands at 24 of 32 clips."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert train(config(data, folder), stop_at=24).progress.seen == 24
    return folder


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the run ends in when nothing happens to it."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert train(config(data, folder)).finished
    return outcome(folder)


def outcome(folder: Path) -> dict[str, str]:
    """Hashes of the last checkpoint's tensors and of the final model."""
    last = list_checkpoints(folder / "checkpoints")[-1]
    paths = [last / "model.safetensors", last / "optimizer.safetensors", *sorted((folder / "model").iterdir())]
    return {f"{p.parent.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80  # no valid text any more
    path.write_bytes(data)


def flip_low(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = next(i for i in range(len(data) // 2, len(data)) if chr(data[i]).isdigit() or path.suffix == ".safetensors")
    data[place] ^= 1  # another digit: still text, still JSON
    path.write_bytes(data)


def delete(path: Path) -> None:
    path.unlink()


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SAID_AND_REFUSED = {
    ("config.yaml", "truncate"): r"another config|config\.yaml is damaged",
    ("config.yaml", "empty"): r"config\.yaml is damaged",
    ("config.yaml", "flip"): r"config\.yaml is damaged",
    ("config.yaml", "flip_low"): r"another config|config\.yaml is damaged",
    ("config.yaml", "delete"): "not empty and holds no run",
    ("config.yaml", "make_folder"): r"config\.yaml is no file",
    ("run.json", "make_folder"): r"run\.json is no file",
    ("metrics.jsonl", "make_folder"): r"metrics\.jsonl is no file",
}


@pytest.mark.parametrize("harm", [truncate, empty, flip, flip_low, delete, make_folder], ids=lambda f: f.__name__)
@pytest.mark.parametrize("names", [*([name] for name in FILES), UNREAD], ids=lambda names: " ".join(names))
def test_any_damaged_file_is_survived_or_named(
    data: Path,
    stopped: Path,
    straight: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
    harm: Callable[[Path], None],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    for name in names:
        harm(folder / name)
    kind = (name, harm.__name__)
    try:
        assert train(config(data, folder)).finished
    except UserError as error:
        assert kind in SAID_AND_REFUSED, error
        assert "\n" not in str(error) and len(str(error)) < 600
        assert re.search(SAID_AND_REFUSED[kind], str(error)), error
        return
    assert kind not in SAID_AND_REFUSED, "was to be refused"
    assert outcome(folder) == straight
    said = "".join(capsys.readouterr())
    checkpoint = Path(name).parent.name
    if checkpoint == Path(NEWEST).name or (checkpoint and name.endswith("state.json")):
        assert f"checkpoint {checkpoint} is damaged" in said
        assert (folder / "checkpoints" / f"{checkpoint}.damaged").is_dir()
    elif name == "metrics.jsonl" and harm not in (delete, flip_low):
        assert "metrics.jsonl is damaged in line" in said or harm is empty
    elif name == "run.json" and harm not in (delete, flip_low):
        assert "run.json is damaged" in said
        assert json.loads((folder / "run.json").read_text())["data"]["clips"] == 20


@pytest.mark.parametrize("name", ["checkpoints", "reconstructions", "model"])
def test_a_file_in_the_place_of_a_folder_is_refused(data: Path, stopped: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(UsageError, match=f"{name} is no folder"):
        train(config(data, folder))


def test_all_checkpoints_damaged_begins_anew_and_keeps_them(
    data: Path, stopped: Path, straight: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    for checkpoint in (OLD, BEFORE, NEWEST):
        flip(folder / checkpoint / "optimizer.safetensors")
    assert train(config(data, folder)).finished
    assert outcome(folder) == straight
    assert "no checkpoint is intact, so the run begins anew" in "".join(capsys.readouterr())
    assert len(list((folder / "checkpoints").glob("*.damaged"))) == 3


def test_a_checkpoint_under_another_name_is_none(
    data: Path, stopped: Path, straight: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    shutil.copytree(folder / BEFORE, folder / "checkpoints" / f"{28:012d}")
    assert train(config(data, folder)).finished
    assert outcome(folder) == straight
    assert "it is the checkpoint at 16 clips under another name" in "".join(capsys.readouterr())


def test_checkpoints_without_a_checksum_of_their_own_still_count(
    data: Path, stopped: Path, straight: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As earlier versions wrote them."""
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    for path in folder.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text())
        del state["checksum"]
        path.write_text(json.dumps(state))
    assert train(config(data, folder)).finished
    assert outcome(folder) == straight
    assert "damaged" not in "".join(capsys.readouterr())


def test_a_cut_log_keeps_what_was_cut(stopped: Path, tmp_path: Path) -> None:
    shutil.copy(stopped / "metrics.jsonl", tmp_path / "metrics.jsonl")
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    broken = whole.replace(b'{"step": 3,', b'{"step": \xff,')
    assert broken != whole
    (tmp_path / "metrics.jsonl").write_bytes(broken)
    log = MetricsLog(tmp_path, seen=24)
    assert "damaged in line 3" in log.damage and "from 8 to 24 clips" in log.damage
    assert [line["seen"] for line in read_metrics(tmp_path)] == [4, 8]
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == broken
    (tmp_path / "metrics.jsonl").write_bytes(broken)
    assert MetricsLog(tmp_path, seen=8).damage == "", "nothing was lost that the run goes on from"


def test_what_a_kill_leaves_behind_is_no_other_folder(data: Path, straight: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / ".config.yaml.a1b2c3.tmp").mkdir(parents=True)
    (folder / ".config.yaml.a1b2c3.tmp" / "config.yaml").write_text("name: ha")
    (folder / LOCK_NAME).write_text("1 elsewhere\n")
    assert train(config(data, folder)).finished
    assert outcome(folder) == straight
    assert not list(folder.rglob(".*"))


# --- one writer ------------------------------------------------------------------------------------------------------


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom avpretrain.core.locks import locked\n"
        "with locked(Path(sys.argv[1]), 'training'):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_training_in_a_folder_is_refused(data: Path, straight: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holder(folder) as process:
        with pytest.raises(UserError, match=rf"process {process.pid} on \S+ is training in .*run; wait"):
            train(config(data, folder))
        assert [p.name for p in folder.iterdir()] == [LOCK_NAME], "the refused one wrote nothing"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert train(config(data, folder)).finished, "a lock whose holder was killed holds nothing"
    assert outcome(folder) == straight


def test_a_refused_run_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    cfg = config(data, tmp_path / "new" / "run")
    schedule = dataclasses.replace(cfg.schedule, samples=1)
    with pytest.raises(UsageError, match=r"lower schedule\.batch\.size"):
        train(dataclasses.replace(cfg, schedule=schedule))
    assert not (tmp_path / "new" / "run").exists()


def test_the_lock_is_gone_with_its_block(tmp_path: Path) -> None:
    with locked(tmp_path / "a", "training"):
        (tmp_path / "a" / "kept").write_text("")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["kept"]
    with locked(tmp_path / "b", "training"):
        pass
    assert not (tmp_path / "b").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write to"), locked(tmp_path / "file", "training"):
        pass


# --- the same run ----------------------------------------------------------------------------------------------------


def test_mechanics_may_change_on_resume(data: Path, stopped: Path, straight: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    cfg = config(data, folder)
    mechanics = dataclasses.replace(cfg.data, memory_cache_mb=64, prefetch=1, max_bad_share=0.5)
    assert train(dataclasses.replace(cfg, data=mechanics)).finished
    assert outcome(folder) == straight


def test_data_that_changed_are_said_to_have(stopped: Path, tmp_path: Path) -> None:
    """Their log-mel statistics, which the config holds, have changed too; that is not what is wrong."""
    other = make_dataset(tmp_path / "other", [Spec(seconds=1.0, size=(32, 40), pitch=7) for _ in range(20)])
    with pytest.raises(
        UsageError, match=r"was trained on other data: fingerprint \w{12} there, \w{12} \(20 clips\) here"
    ):
        train(config(other, stopped))
