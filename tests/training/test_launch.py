"""What accelerate was asked for is done, or refused before anything is trained; a run says what it trains with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend

from avpretrain.api import train
from avpretrain.config.reader import to_dict
from avpretrain.config.schedules import Phase, plan
from avpretrain.core.errors import UsageError
from avpretrain.training import launch
from avpretrain.training.launch import banner, check_accumulation, check_tracker, choose_precision
from tests.support.tiny_runs import tiny_config

ROOT = Path(__file__).parents[2]


def launched(tmp_path: Path, options: list[str], *program: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `accelerate launch OPTIONS PROGRAM` without anybody's config file."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options, *map(str, program)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    env = {**kept, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_what_accelerate_was_asked_for_reaches_the_process(tmp_path: Path) -> None:
    """It says mixed precision 'no' where nobody asked, too: see `test_one_rank_launched_...`, which notes none."""
    script = tmp_path / "script.py"
    script.write_text(
        "from avpretrain.core.errors import UsageError\n"
        "from avpretrain.training.launch import check_accumulation, choose_precision\n"
        "print(*choose_precision('auto'), sep='|')\n"
        "try:\n    check_accumulation()\nexcept UsageError as error:\n    print(error)\n"
    )
    asked = ["--mixed_precision", "no", "--gradient_accumulation_steps", "4"]
    done = launched(tmp_path, ["--cpu", "--num_processes", "1", *asked], script)
    assert done.returncode == 0, done.stderr[-2000:]
    precision, accumulation = done.stdout.splitlines()
    assert precision == "no|as accelerate launch says"
    assert "accumulation over 4 steps" in accumulation


def test_precision_follows_what_the_launcher_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def under(value: str, *options: str) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", value)
        monkeypatch.setattr(launch, "launcher", lambda: ["python", "accelerate", "launch", *options, "train.py"])

    Gpu(monkeypatch, 9)
    under("no", "--cpu")
    assert choose_precision("auto") == ("bf16", "")
    under("no", "--cpu", "--mixed-precision=no")
    assert choose_precision("auto") == ("no", "as accelerate launch says")
    under("bf16", "--mixed_precision", "bf16")
    assert choose_precision("auto") == ("bf16", "as accelerate launch says")
    assert choose_precision("fp32") == ("no", "by run.precision, though accelerate launch says bf16")
    (tmp_path / "accelerate.yaml").write_text("mixed_precision: 'no'\n")
    under("no", "--config_file", str(tmp_path / "accelerate.yaml"))
    assert choose_precision("auto") == ("no", "as accelerate launch says")


class Gpu:
    """A GPU of a compute capability, as torch would tell of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, major: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)  # by emulation


@pytest.mark.parametrize(("major", "expected"), [(7, "no"), (8, "bf16"), (9, "bf16")])
def test_auto_takes_no_emulated_bf16(monkeypatch: pytest.MonkeyPatch, major: int, expected: str) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    Gpu(monkeypatch, major)
    assert torch.cuda.is_bf16_supported(), "what auto used to ask"
    assert choose_precision("auto") == (expected, "")
    assert choose_precision("bf16") == ("bf16", "")


def test_auto_does_not_overrule_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, 9)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert launch.launcher() == []
    assert choose_precision("auto") == ("no", "as accelerate launch says")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UsageError, match="mixed precision fp16"):
        choose_precision("auto")
    assert choose_precision("fp32")[0] == "no"


def test_accumulation_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_accumulation()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    check_accumulation()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(UsageError, match="accumulation over 4 steps, which would divide gradients by 4"):
        train(tiny_config(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_refused(data: Path, tmp_path: Path) -> None:
    check_tracker("none")
    check_tracker("tensorboard")
    try:
        import wandb  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match="pip install wandb"):
            train(tiny_config(data, tmp_path / "run", run={"tracker": "wandb"}))
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_launch_that_would_do_less_in_silence_is_refused(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(to_dict(tiny_config(data, tmp_path / "run"))))
    done = launched(tmp_path, ["--cpu", "--num_processes", "2"], "-m", "avpretrain.train", config)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("avpretrain: ")]
    assert "was asked for several ranks and started only one" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_rank_launched_where_an_address_is_exported_trains(data: Path, tmp_path: Path) -> None:
    """Job scripts export MASTER_ADDR for all they start."""
    config = tmp_path / "config.yaml"
    cfg = tiny_config(data, tmp_path / "run", schedule={"samples": 8, "batch": {"size": 4, "multiple": 4}})
    config.write_text(yaml.safe_dump(to_dict(cfg)))
    options = ["--cpu", "--num_processes", "1"]
    done = launched(tmp_path, options, "-m", "avpretrain.train", config, MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test: cpu, 1 rank, fp32, 20 clips (train), " in done.stderr


def test_a_run_says_what_it_trains_with(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tiny_config(data, tmp_path / "run", run={"precision": "fp32"})
    train(cfg, stop_at=8)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("test: cpu, 1 rank, fp32, 20 clips (train), ")
    assert first.endswith(" parameters, batch 4 to 8, 120 clips to see in 25 steps, not compiled")
    train(cfg, stop_at=12)
    assert capsys.readouterr().err.splitlines()[0].endswith("not compiled; resumes at 8")


class OnGpu(Accelerator):
    """What accelerate says on a machine with one GPU, where there may be none."""

    device = torch.device("cuda")
    num_processes = 1
    distributed_type = DistributedType.NO
    mixed_precision = "bf16"

    def __init__(self) -> None:
        self.state = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO))


def test_a_run_on_a_gpu_says_whether_its_steps_are_captured(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, 9)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    cfg = tiny_config(data, Path("run"))
    steps = list(plan(cfg.schedule, cfg.optim, 120, lambda progress: Phase(), lambda phase: 1.0))
    accelerator = OnGpu()
    assert banner(cfg, accelerator, steps, "20 clips", 7, 0, "").endswith("not compiled, steps as CUDA graphs")
    sharded = banner(cfg, accelerator, steps, "20 clips", 7, 0, "FSDP shards the weights")
    assert sharded.endswith("not compiled, no CUDA graphs (FSDP shards the weights)")


def test_a_batch_larger_than_the_set_is_refused(data: Path, tmp_path: Path) -> None:
    batch = {"size": 24, "multiple": 4}
    with pytest.raises(UsageError, match=r"schedule\.batch\.size is 24, but the split 'train' has 20 clips"):
        train(tiny_config(data, tmp_path / "run", schedule={"batch": batch}))
    grows = {"size": 16, "multiple": 4, "rule": "visible_tokens", "max_size": 64}
    with pytest.raises(UsageError, match=r"is 16 \(up to \d+ by schedule\.batch\.rule visible_tokens\)"):
        train(tiny_config(data, tmp_path / "run", schedule={"batch": grows}))
    assert not (tmp_path / "run").exists()
    loss = {"inter": 0.0, "intra": 0.0}
    alone = tiny_config(data, tmp_path / "run", schedule={"batch": batch, "samples": 24}, model={"loss": loss})
    assert train(alone).finished


def test_a_run_shorter_than_a_batch_names_the_key_that_was_set(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"raise schedule\.samples"):
        train(tiny_config(data, tmp_path / "run", schedule={"samples": 1}))
    with pytest.raises(UsageError, match=r"raise schedule\.epochs"):
        train(tiny_config(data, tmp_path / "run", schedule={"samples": None, "epochs": 0.1}))
