"""Where a step's time goes: every second is charged once, and to the component that spent it."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from avpretrain.bench.components import COMPONENTS, component_seconds
from avpretrain.bench.step import StepBench, StepShape, bench_steps, checkpointing_price, with_checkpointing
from avpretrain.cli import main as cli
from avpretrain.config.reader import to_dict
from avpretrain.config.train import RunConfig
from avpretrain.core.errors import UsageError
from avpretrain.methods.diffmavil.config import RatioConfig, ScheduleConfig, TrainConfig
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.example import random_batch
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import make_method
from avpretrain.training.bare_step import BareStep
from tests.support.tiny_models import tiny
from tests.support.tiny_runs import tiny_config, tiny_data

CPU = torch.device("cpu")
RATIOS = MaskRatios(0.75, 0.75)
PAUSE = 0.15


class Slow(torch.autograd.Function):
    """The identity, which takes its time on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        time.sleep(PAUSE)
        return gradients[0]


def slow_down(model: DiffMAViL, part: str, backward: bool) -> None:
    """Makes one component of a model sleep, in one direction."""
    module: Any = model.audio_encoder.patch_embed if part == "patches" else model.parts()[part]
    plain = module.forward

    def forward(*args: Any, **options: Any) -> Any:
        if not backward:
            time.sleep(PAUSE)
            return plain(*args, **options)
        output = plain(*args, **options)
        return tuple(map(Slow.apply, output)) if isinstance(output, tuple) else Slow.apply(output)

    module.forward = forward


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("part", ["patches", "audio_encoder", "video_encoder", "fusion", "audio_decoder"])
def test_the_component_that_sleeps_is_the_one_that_is_charged(part: str, backward: bool) -> None:
    bare = BareStep(make_method(TrainConfig(model=tiny())), CPU)
    batch = random_batch(tiny().input, 2, CPU)
    plain = component_seconds(bare, batch, RATIOS, repeats=1)
    slow_down(bare.model, part, backward)
    slow = component_seconds(bare, batch, RATIOS, repeats=1)
    assert tuple(slow) == COMPONENTS
    assert slow[part] >= PAUSE
    gained = {name: slow[name] - plain[name] for name in COMPONENTS}
    assert max(gained, key=lambda name: gained[name]) == part


def test_marks_change_no_gradient_and_leave_nothing_behind() -> None:
    bare = BareStep(make_method(TrainConfig(model=tiny())), CPU)
    batch = random_batch(tiny().input, 2, CPU)
    kept: list[list[Tensor]] = []
    bare.update = lambda: kept.append([p.grad.clone() for p in bare.model.parameters() if p.grad is not None])  # type: ignore[method-assign]
    bare.losses(batch, RATIOS)["loss"].backward()
    bare.update()
    bare.model.zero_grad()
    component_seconds(bare, batch, RATIOS, repeats=1)
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[1], strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in bare.model.modules())


def test_price_of_checkpointing_is_a_ratio_phase_by_phase() -> None:
    both = with_checkpointing({"a": TrainConfig()})
    assert [cfg.run.activation_checkpointing for cfg in both.values()] == [False, True]
    plain, checkpointed = both
    row = {"batch_size": 8, "audio_ratio": 0.9, "video_ratio": 0.8}
    measured = {plain: [(2.0, 100), (1.0, 0)], checkpointed: [(3.0, 40), (1.5, 0)]}
    variants = {
        name: [{**row, "seconds": seconds, "peak_memory_bytes": peak} for seconds, peak in pairs]
        for name, pairs in measured.items()
    }
    price = checkpointing_price(variants)
    assert price == {"a": [{**row, "seconds_times": 1.5, "memory_times": 0.4}, {**row, "seconds_times": 1.5}]}


def test_a_shared_phase_is_measured_once_and_one_too_large_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[StepShape] = []

    def measure(bench: StepBench, phase: StepShape, warmup: int = 5, repeats: int = 20) -> dict[str, Any]:
        measured.append(phase)
        if phase.audio_ratio == 0.8:
            raise torch.OutOfMemoryError
        return {**dataclasses.asdict(phase), "seconds": 1.0, "clips_per_second": 1.0, "flops_per_second": 1.0,
                "peak_memory_bytes": 1}  # fmt: skip

    monkeypatch.setattr(StepBench, "measure", measure)
    monkeypatch.setattr(StepBench, "components", lambda *args: {})
    falls = RatioConfig(kind="linear", start=0.9, end=0.8, levels=3)
    plain = TrainConfig(model=tiny())
    moving = dataclasses.replace(plain, schedule=ScheduleConfig(audio_mask_ratio=falls, video_mask_ratio=falls))
    kept: list[int] = []
    answer = bench_steps(
        {"a": plain, "b": moving, "c": moving}, 4, 1, lambda _: None, lambda a: kept.append(len(a["variants"]))
    )
    assert [phase.audio_ratio for phase in measured] == [0.8, 0.9, 0.85]
    assert answer["variants"]["b"] == answer["variants"]["c"]
    assert answer["variants"]["a"] == [{"batch_size": 4, "audio_ratio": 0.8, "video_ratio": 0.8, "out_of_memory": True}]
    assert kept == [1, 2, 3]
    assert answer["matmul_peak_after"] > 0


def test_what_can_not_be_captured_is_not_measured_as_if_it_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = TrainConfig(model=tiny(), run=RunConfig(cuda_graphs="always"))
    with pytest.raises(UsageError, match=r"run\.cuda_graphs always: there is no GPU"):
        bench_steps({"a": cfg}, 4, 1, lambda _: None)


def test_command_measures_split_price_and_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = tiny_data(tmp_path / "shards")
    cfg = tiny_config(shards, tmp_path / "run")
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, shards=()))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(to_dict(cfg)))
    args = ["--batch-size", "4", "--repeats", "1", "--json", "--checkpointing-price", "--compile", "False"]
    fed = ["--data.shards", str(shards), "--data.num-workers", "0"]
    cli.main(["bench", "step", str(tmp_path / "c.yaml"), *args, *fed, "--debug"])
    answer = json.loads(capsys.readouterr().out)
    (name, rows), (other, _) = answer["variants"].items()
    assert other == f"{name}+activation_checkpointing"
    for row in rows:
        assert sum(part["share"] for part in row["components"].values()) == pytest.approx(1)
        assert row["components"]["audio_encoder"]["flops_per_second"] > 0
    assert len(answer["activation_checkpointing"][name]) == len(rows) == 3
    assert 0 <= answer["loader"][name]["wait_share"] <= 1
