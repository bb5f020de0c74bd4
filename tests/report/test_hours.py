"""Hours of whole trainings from measured steps: an integral over the plan, and only of steps that were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avpretrain.cli import main as cli
from avpretrain.core.errors import UserError
from avpretrain.methods.diffmavil.config import TrainConfig, load_config
from avpretrain.methods.diffmavil.cost import clip_flops
from avpretrain.methods.diffmavil.run_cost import run_cost
from avpretrain.report.hours import Bench, predict, read_bench
from avpretrain.report.ledger import ledger

CLIPS = 20_000


def measured(cfg: TrainConfig, speeds: float, batch: int = 0) -> list[dict[str, Any]]:
    """A row for each phase; the speed is `speeds` over the share of patches that stays visible.

    Args:
        batch: of every phase; 0 = half of the plan's.
    """
    rows = []
    for phase in run_cost(cfg, CLIPS).phases:
        size = batch or phase.batch_size // 2
        flops = clip_flops(cfg.model, phase.audio_ratio, phase.video_ratio, size).training
        clips_per_second = speeds / (1 - phase.audio_ratio)
        row = {"batch_size": size, "audio_ratio": phase.audio_ratio, "video_ratio": phase.video_ratio}
        rows.append(row | {"clips_per_second": clips_per_second, "flops_per_clip": flops})
    return rows


def bench_of(folder: Path, variants: dict[str, list[dict[str, Any]]]) -> Bench:
    path = folder / "bench.json"
    path.write_text(json.dumps({"hardware": {"gpus": ["a card"]}, "variants": variants}))
    return read_bench(path)


def test_hours_are_the_integral_over_the_plan(tmp_path: Path) -> None:
    cfg = load_config("tiny_diffmavil")
    cost = run_cost(cfg, CLIPS)
    found = predict(bench_of(tmp_path, {"d": measured(cfg, 50.0)}), cfg, cost)
    assert found is not None
    expected = sum(phase.clips * (1 - phase.audio_ratio) / 50.0 for phase in cost.phases) / 3600
    assert (found.measured, found.hours) == ("d", pytest.approx(expected))


def test_no_variant_borrows_the_speed_of_another(tmp_path: Path) -> None:
    mavil, diffmavil = load_config("tiny_mavil"), load_config("tiny_diffmavil")
    bench = bench_of(tmp_path, {"mavil": measured(mavil, 50.0)})
    assert predict(bench, diffmavil, run_cost(diffmavil, CLIPS)) is None
    rows = measured(diffmavil, 50.0)
    assert predict(bench_of(tmp_path, {"d": rows[1:]}), diffmavil, run_cost(diffmavil, CLIPS)) is None
    rows[0]["clips_per_second"] = None  # it did not fit the memory
    assert predict(bench_of(tmp_path, {"d": rows}), diffmavil, run_cost(diffmavil, CLIPS)) is None


def test_batches_that_move_with_the_plan_are_preferred(tmp_path: Path) -> None:
    cfg = load_config("tiny_diffmavil")
    variants = {"constant": measured(cfg, 70.0, batch=64), "adaptive": measured(cfg, 50.0)}
    found = predict(bench_of(tmp_path, variants), cfg, run_cost(cfg, CLIPS))
    assert found is not None
    assert found.measured == "adaptive"


def test_ledger_has_hours_where_they_were_measured(tmp_path: Path) -> None:
    base, fast = load_config("tiny_mavil"), load_config("tiny_fast")
    entries = ledger(base, 500, bench_of(tmp_path, {"m": measured(base, 10.0), "f": measured(fast, 10.0)}))
    found = {entry.variant: entry for entry in entries if entry.time is not None}
    assert {entry.accounting for entry in found.values()} == {"encode 2, decode 1"}
    assert found["mavil"].time_saving == 0
    assert found["fast: as before, 0.95 to 0.85"].time_saving == pytest.approx(0.5, abs=0.03)
    assert "diffmavil" not in found


def test_command_shows_hours_on_one_and_many_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_of(tmp_path, {"m": measured(load_config("tiny_mavil"), 10.0)})
    path = tmp_path / "bench.json"
    cli.main(["ledger", "tiny_mavil", "--clips", "500", "--bench", str(path), "--json"])
    answer = json.loads(capsys.readouterr().out)
    entry = next(e for e in answer["entries"] if e["variant"] == "mavil" and "hours" in e)
    assert entry["hours"]["1"] == pytest.approx(entry["clips"] * 0.2 / 10.0 / 3600)
    assert entry["hours"]["64"] == pytest.approx(entry["hours"]["1"] / 64)
    assert "no cost of communication" in answer["hours_assume"]
    assert answer["hours_measured_on"] == {"gpus": ["a card"]}
    with pytest.raises(SystemExit):
        cli.main(["ledger", "small_mavil", "--clips", "5000", "--bench", str(path)])
    assert "fits no variant of small_mavil" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "{}", '{"hardware": {}, "variants": {"a": [{"clips_per_second": 3}]}}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(UserError, match="holds no measured step times"):
        read_bench(path)
