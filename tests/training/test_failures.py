"""What goes wrong in the middle of a run ends it in one line that says what to do, with exit status 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from avpretrain.cli import main as cli
from avpretrain.config.reader import to_dict
from avpretrain.config.schedules import Step
from avpretrain.data.read.dataset import ClipSet
from avpretrain.data.read.sampler import Order
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.training.loop import Trainer
from tests.support.tiny_runs import CONFIG, tiny_config, tiny_data


def last_words(
    cfg: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    meddle: Callable[[Step], None],
) -> str:
    """Trains by the command line, with `meddle` called before each step, and returns the error line."""
    real = Trainer._step

    def step_after_meddling(self: Trainer, step: Step, *args: object) -> None:
        meddle(step)
        real(self, step, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", step_after_meddling)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(to_dict(cfg)))
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(tmp_path / "c.yaml")])
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    assert [line for line in lines if line.startswith("avpretrain: ")] == lines[-1:]
    return lines[-1]


@pytest.mark.parametrize("on", ["gpu", "cpu"])
def test_out_of_memory_names_the_batch_and_the_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, on: str
) -> None:
    cfg = tiny_config(tiny_data(tmp_path / "shards"), tmp_path / "run")

    def fill(step: Step) -> None:
        if step.batch_size == 4:  # the plan's second batch size
            if on == "gpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            torch.empty(1 << 60, dtype=torch.uint8)

    said = last_words(cfg, tmp_path, capsys, monkeypatch, fill)
    assert "out of memory at batch size 4 (4 a rank) with mask 0.70/0.70" in said
    assert "lower schedule.batch.size" in said


@pytest.mark.parametrize(
    ("window", "says"),
    [(3, "clips could not be read, more than data.max_bad_share 0.05 allows"), (2, "16 clips in a row could not be")],
    ids=["replaced from its window", "alone in its window"],
)
def test_a_shard_that_vanishes_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, window: int, says: str
) -> None:
    """Its clips are replaced and counted until they are more than a run may lose."""
    data = {"shuffle_window": window, "num_workers": 0}
    input = CONFIG["model"]["input"] | {"audio_mean": -6.0, "audio_std": 4.0}  # measured, they would open every shard
    shards, schedule = tiny_data(tmp_path / "shards"), {"samples": 1000}
    cfg = tiny_config(shards, tmp_path / "run", data=data, schedule=schedule, model={"input": input})
    clips = ClipSet(cfg.data.shards)
    later = Order(clips.shard_sizes, window, cfg.seed).shards(0)[3]  # none of the first window
    _, shard = clips.shard_of(clips.shard_starts[later])

    def vanish(step: Step) -> None:
        (tmp_path / "shards" / shard.name).unlink(missing_ok=True)

    said = last_words(cfg, tmp_path, capsys, monkeypatch, vanish)
    assert says in said
    assert shard.name in said


def test_a_dead_loader_process_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tiny_data(tmp_path / "shards")
    data = {"num_workers": 1, "prefetch": 1}
    cfg = tiny_config(shards, tmp_path / "run", data=data, schedule={"samples": 10_000})
    here = psutil.Process()
    before = {child.pid for child in here.children(recursive=True)}
    killed = []

    def kill(step: Step) -> None:
        for child in here.children(recursive=True) if step.index == 2 else []:
            if child.pid not in before and child.ppid() != here.pid:  # not the server that they are forked from
                child.kill()
                killed.append(child.pid)

    said = last_words(cfg, tmp_path, capsys, monkeypatch, kill)
    assert killed
    assert "the loader processes died" in said
    assert "lower data.num_workers or data.prefetch" in said
