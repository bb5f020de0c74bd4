"""The plan of a run before it begins: the dry run, and batches of constant measured memory."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from PIL import Image

from avpretrain.bench.dry_run import Timing, dry_run
from avpretrain.bench.step import StepShape
from avpretrain.cli.main import main
from avpretrain.config.reader import from_dict, to_dict
from avpretrain.config.schedules import Phase, cost_by_rule
from avpretrain.core.errors import UsageError, UserError
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.cost import cost_of, visible_tokens
from avpretrain.methods.diffmavil.curriculum import MaskRatios, mask_ratio_at, phases_of
from avpretrain.methods.diffmavil.run_cost import run_cost
from avpretrain.methods.load import make_method
from avpretrain.training.memory_probe import Peak, measure, measured_memory
from tests.support.tiny_runs import tiny_config


def planned(tmp_path: Path, rule: str = "visible_tokens", **batch: int) -> TrainConfig:
    cfg = tiny_config(tmp_path / "no-shards", tmp_path / "run")
    sizes = dataclasses.replace(cfg.schedule.batch, rule=rule, **batch)
    return dataclasses.replace(cfg, schedule=dataclasses.replace(cfg.schedule, batch=sizes))


@pytest.mark.parametrize("kinds", [("linear", "step"), ("cosine", "constant"), ("constant", "constant")])
def test_pairs_of_ratios_are_all_that_a_run_meets(tmp_path: Path, kinds: tuple[str, str]) -> None:
    schedule = planned(tmp_path).schedule
    audio, video = schedule.audio_mask_ratio, schedule.video_mask_ratio
    audio = dataclasses.replace(audio, kind=kinds[0], levels=7)
    video = dataclasses.replace(video, kind=kinds[1], start=0.6, end=0.8, levels=4)
    schedule = dataclasses.replace(schedule, audio_mask_ratio=audio, video_mask_ratio=video)
    met = [MaskRatios(mask_ratio_at(i / 9973, audio), mask_ratio_at(i / 9973, video)) for i in range(9973)]
    assert phases_of(schedule) == list(dict.fromkeys(met))


# --- the dry run -----------------------------------------------------------------------------------------------------


def test_hours_are_each_phases_clips_over_its_speed(tmp_path: Path) -> None:
    cfg = planned(tmp_path)
    speed = {0.9: 10.0, 0.7: 5.0, 0.5: 2.0}

    def timer(phase: StepShape) -> Timing:
        return Timing(2, 2 / speed[phase.audio_ratio], first_seconds=9.0)

    answer = dry_run(cfg, 600, timer)
    cost = run_cost(cfg, 600)
    assert answer["hours"] == pytest.approx(sum(p.clips / speed[p.audio_ratio] for p in cost.phases) / 3600)
    assert answer["compile_seconds"] == 0.0, "nothing is compiled"
    assert (answer["steps"], answer["clips"], answer["flops"]) == (cost.steps, cost.clips, cost.total)
    tokens = sum(visible_tokens(cfg.model, p.audio_ratio, p.video_ratio) * 2 * p.clips for p in cost.phases)
    assert answer["visible_tokens"] == tokens
    assert answer["shapes"] == 3


def test_command_plans_without_shards_and_writes_a_plot_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = dataclasses.replace(planned(tmp_path), output_dir="run")
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, shards=()))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(to_dict(cfg)))
    monkeypatch.chdir(tmp_path)
    main(["train", "mine.yaml", "--dry-run", "--json", "--debug"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["hours"] > 0
    assert {row["timed_clips"] for row in answer["phases"]} <= {2, 4, 8}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.yaml", "test-plan.png"]
    with Image.open(tmp_path / "test-plan.png") as plot:
        assert plot.size[0] > 400
    main(["train", "mine.yaml", "--dry-run", "--no-timing", "--plot", "other.png", "--debug"])
    said = capsys.readouterr().out
    assert "3 distinct shapes" in said and "plot: other.png" in said and "expected" not in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--dry-run"], "give --data.shards FOLDER or --schedule.samples N"),
        (["--json"], "belong to --dry-run"),
        (["--dry-run", "--schedule.samples", "3"], "its first batch holds"),
    ],
)
def test_command_says_what_is_missing(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "tiny_fast", "--no-timing", *args])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


# --- constant memory -------------------------------------------------------------------------------------------------


def line(clips: int, phase: Phase) -> int:
    """Peak bytes of a pretended device: a fixed part, and less a clip the more is hidden."""
    return 5_000_000 + clips * round(1e6 * (2.0 - sum(phase.numbers().values())))


def with_measured_memory(cfg: TrainConfig, accelerator: Accelerator, peak: Peak | None = None) -> TrainConfig:
    batch = measured_memory(make_method(cfg), accelerator, peak)
    return dataclasses.replace(cfg, schedule=dataclasses.replace(cfg.schedule, batch=batch))


def test_measured_memory_sets_the_batch(tmp_path: Path) -> None:
    cfg = planned(tmp_path, "memory", size=400, max_size=4000)
    rows = measure(make_method(cfg), 1, line)
    assert rows == ((0.9, 0.9, 200_000.0), (0.7, 0.7, 600_000.0), (0.5, 0.5, 1_000_000.0))
    cfg = with_measured_memory(cfg, Accelerator(cpu=True), line)
    assert cfg.schedule.batch.bytes_per_clip == rows
    sizes = [phase.batch_size for phase in run_cost(cfg, 20_000).phases]
    assert sizes == [2000, 664, 400]
    assert from_dict(TrainConfig, to_dict(cfg)) == cfg, "what was measured survives the run's config.yaml"


def test_a_run_goes_on_with_what_it_measured(tmp_path: Path) -> None:
    cfg = planned(tmp_path, "memory")
    accelerator = Accelerator(cpu=True)
    begun = with_measured_memory(cfg, accelerator, line)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(to_dict(begun)))

    def other_device(clips: int, phase: Phase) -> int:
        raise AssertionError("measured twice")

    assert with_measured_memory(cfg, accelerator, other_device) == begun


def test_without_a_gpu_memory_is_estimated(tmp_path: Path) -> None:
    cfg = planned(tmp_path, "memory", size=64, multiple=4, max_size=4000)
    assert with_measured_memory(cfg, Accelerator(cpu=True)) == cfg
    cost = cost_of(cfg.model, "memory")
    sizes = {phase.audio_ratio: phase.batch_size for phase in run_cost(cfg, 4000).phases}
    assert sizes[0.9] == 64 * cost(MaskRatios(0.5, 0.5)) / cost(MaskRatios(0.9, 0.9)) // 4 * 4


def test_what_can_not_be_held_constant_is_said(tmp_path: Path) -> None:
    cfg = planned(tmp_path, "memory")
    with pytest.raises(UserError, match="does not rise from"):
        measure(make_method(cfg), 1, lambda clips, phase: 10)
    with pytest.raises(UsageError, match=r"has no row for mask 0\.90/0\.90"):
        batch = dataclasses.replace(cfg.schedule.batch, bytes_per_clip=((0.5, 0.5, 1.0),))
        cost_by_rule(batch, partial(cost_of, cfg.model))(MaskRatios(0.9, 0.9))
