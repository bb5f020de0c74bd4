"""The matrix of variants and seeds: what it is, how it runs, resumes and fails, and what it says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from scipy import stats

from avpretrain.ablate.matrix import Ablation, cells_of, load_ablation
from avpretrain.ablate.record import Done, Failure, read_record
from avpretrain.ablate.summary import Summary, markdown, summary, table
from avpretrain.cli import main as cli
from avpretrain.config.reader import to_dict
from avpretrain.core.errors import UsageError, UserError
from avpretrain.measures.numbers import percent
from avpretrain.methods.diffmavil.config import TrainConfig, load_config
from avpretrain.methods.diffmavil.cost import clip_flops
from avpretrain.methods.diffmavil.run_cost import run_cost
from avpretrain.training.folders import list_checkpoints
from tests.cost.test_flops import counted
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_runs import CONFIG

DIFFMAVIL = {"model.audio.decoder.input": "diffused", "model.video.decoder": {"input": "diffused", "kind": "cross"}}


def write_matrix(folder: Path, variants: dict[str, Any], **more: Any) -> Path:
    """A matrix over a tiny MAViL, and its base, in a folder."""
    base = json.loads(json.dumps(CONFIG))
    base["schedule"]["samples"] = 48
    for side in ("audio", "video"):
        base["model"][side]["decoder"] = {"width": 32, "depth": 1, "heads": 2}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump({"base": str(folder / "base.yaml"), "variants": variants, **more}, sort_keys=False))
    return path


# --- what it is ------------------------------------------------------------------------------------------------------


def test_variants_are_laid_over_each_other(tmp_path: Path) -> None:
    entries = {
        "mavil": {},
        "a": {"model.audio.decoder": {"kind": "cross"}},
        "b": {"schedule.batch.rule": "constant", "model.audio.decoder.kind": "cross_self"},
        "both": {"extends": ["a", "b"], "optim.lr": 0.5},
    }
    ablation = load_ablation(str(write_matrix(tmp_path, entries, overrides={"schedule": {"samples": 80}})))
    both = ablation.variants[3]
    assert ablation.baseline.name == "mavil"
    assert both.changes == {"optim.lr": 0.5}
    assert both.differences == {
        "model.audio.decoder.kind": "cross_self",
        "schedule.batch.rule": "constant",
        "optim.lr": 0.5,
    }
    cfg = ablation.config(both)
    assert (cfg.model.audio.decoder.kind, cfg.optim.lr, cfg.schedule.samples) == ("cross_self", 0.5, 80)


def test_cells_run_seed_by_seed(tmp_path: Path) -> None:
    ablation = load_ablation(str(write_matrix(tmp_path, {"a": {}, "b": {"optim.lr": 0.5}}, seeds=[3, 1])))
    assert [cell.name for cell in cells_of(ablation, tmp_path)] == ["a-s3", "b-s3", "a-s1", "b-s1"]
    (cell,) = cells_of(ablation, tmp_path, seeds=[7], only=["b"])
    assert (cell.config.seed, cell.config.name, cell.config.optim.lr) == (7, "b-s7", 0.5)
    assert cell.config.run_dir == tmp_path / "runs" / "b-s7"


@pytest.mark.parametrize(
    ("variants", "more", "says"),
    [
        ({"a": {"model.widht": 3}}, {}, "variant 'a': unknown config key 'model.widht'; did you mean 'model.width'?"),
        ({"a": {"model.width.x": 3}}, {}, "unknown config key 'model.width.x'"),
        ({"a": {"model.audio": 3}}, {}, "unknown config key 'model.audio'"),
        ({"a": {"model.width": "wide"}}, {}, "variant 'a': config key 'model.width' takes int"),
        ({"a": {"seed": 3}}, {}, "variant 'a': 'seed' is set for each cell"),
        ({"a": {"extends": "b"}, "b": {}}, {}, "variant 'a' extends 'b', which is not a variant above it"),
        ({"a b": {}}, {}, "variant 'a b' must be a plain name"),
        ({}, {}, "has no variants"),
        ({"a": {}}, {"overrides": {"model": {"widht": 3}}}, "overrides: unknown config key 'model.widht'"),
        ({"a": {}}, {"sedes": [1]}, "unknown config key 'sedes'; did you mean 'seeds'?"),
        ({"a": {}}, {"seeds": [1, 1]}, "seeds must be different"),
        ({"a": {}}, {"probes": [{"modality": "audio"}]}, "label must name a label"),
        ({"a": {}}, {"probes": [{"label": "x"}, {"label": "x"}]}, "linear_probe_x_audio appears twice"),
        ({"a": {}}, {"probes": [{"label": "x", "name": "X, 1"}, {"label": "y", "name": "x 1"}]}, "x_1 appears twice"),
        ({"a": {}}, {"base": "small_mavli"}, "did you mean 'small_mavil'"),
    ],
)
def test_mistakes_in_a_matrix_are_named(
    tmp_path: Path, variants: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as error:
        load_ablation(str(write_matrix(tmp_path, variants, **more)))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "fats"], "no variant 'fats' in ablation; did you mean 'fast'?"),
        (["--seed", "3"], "--seed is set for each cell; use --seeds"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--base", "tiny_mavli"], "did you mean 'tiny_mavil'"),
        ([], "no folder for the results: give --out DIR"),
        (["--out", "somewhere"], "no data: give --data.shards FOLDER"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["ablate", "ablation", *arguments])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert says in error


# --- the matrices that come with it ----------------------------------------------------------------------------------


def learnt(cfg: TrainConfig) -> dict[str, Any]:
    values = to_dict(cfg)
    return {key: values[key] for key in ("model", "schedule", "optim", "data")}


def by_name(ablation: Ablation) -> dict[str, TrainConfig]:
    return {variant.name: ablation.config(variant) for variant in ablation.variants}


@pytest.mark.parametrize(("matrix", "base"), [("ablation", "tiny"), ("ablation", "base"), ("ablation_demo", "tiny")])
def test_matrices_hold_the_presets(matrix: str, base: str) -> None:
    configs = by_name(load_ablation(matrix, f"{base}_mavil"))
    for name in ("mavil", "diffmavil", "fast"):
        preset = load_config(f"{base}_{name}")
        samples = configs[name].schedule.samples
        expected = replace(preset, schedule=replace(preset.schedule, samples=samples))
        assert learnt(configs[name]) == learnt(expected)


@pytest.mark.parametrize("variant", [v.name for v in load_ablation("ablation").variants])
def test_cost_of_every_variant_equals_torchs_counter(variant: str) -> None:
    model = by_name(load_ablation("ablation", "tiny_mavil"))[variant].model
    forward, backward = counted(model, 0.9, 0.8, count=2)
    ours = clip_flops(model, 0.9, 0.8, batch_size=2)
    assert ours.forward == pytest.approx(forward, rel=1e-9)
    assert ours.training == pytest.approx(forward + backward, rel=1e-9)


def test_noise_designs_differ_in_noise_alone() -> None:
    """Cells of {plain, preconditioned, shifted, both} on the sides that their names say, scored on validation clips."""
    ablation = load_ablation("ablation_noise")
    assert ablation.settings.split == "val"
    pre = {"prediction_type": "edm", "input_scale": "signal", "loss_weighting": "noise"}
    shift = {"audio_shift": 4.0, "video_shift": 16.0}
    configs = by_name(ablation)
    base = configs["mask_token"]
    for name, design in {"plain": {}, "pre": pre, "shift": shift, "both": {**pre, **shift}}.items():
        for sides in ("a", "v", "av"):
            model = configs[f"{name}_{sides}"].model
            inputs = model.audio.decoder.input, model.video.decoder.input
            assert inputs == tuple("diffused" if side in sides else "mask_token" for side in "av")
            assert model.diffusion == replace(base.model.diffusion, **design)
            assert configs[f"{name}_{sides}"].schedule == base.schedule


def test_dry_run_lists_costs_and_writes_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base=tiny_mavil", "--only", "mavil", "fast", "--seeds", "5", "--dry-run", "--out", str(tmp_path)]
    cli.main(["ablate", "ablation", *arguments, "--schedule.samples", "640"])
    costs = [run_cost(load_config(f"tiny_{name}"), 640) for name in ("mavil", "fast")]
    assert percent(costs[1].saving(costs[0])) in capsys.readouterr().out
    cfg = load_config(str(tmp_path / "configs" / "fast-s5.yaml"))
    assert (cfg.model.width, cfg.schedule.samples, cfg.model.audio.decoder.decode_ratio) == (96, 640, 0.5)


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    splits = (("train", 12), ("val", 4), ("test", 6))
    specs = [Spec(1.0, split, "ab"[i % 2], size=(32, 40)) for split, count in splits for i in range(count)]
    return str(make_dataset(tmp_path_factory.mktemp("data") / "set", specs))


@pytest.mark.slow
def test_runs_skips_what_is_done_and_survives_failures(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"diffmavil": DIFFMAVIL, "broken": {"data.split": "nowhere"}}
    matrix = write_matrix(
        tmp_path,
        variants,
        seeds=[4],
        probes=[{"name": "Class, 3 folds", "label": "class", "folds": "3", "pooling": "bands"}],
    )
    out = tmp_path / "out"
    arguments = ["ablate", str(matrix), "--data.shards", shards, "--out", str(out), "--jobs", "2"]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    shown = capsys.readouterr()
    assert stop.value.code == 1
    assert "1 of 2 cells failed: broken-s4" in shown.err
    _check_done_cell(out)
    failed = json.loads((out / "cells" / "broken-s4.json").read_text())
    assert (failed["status"], failed["stage"]) == ("failed", "train")
    assert "nowhere" in failed["error"]
    assert "Failed: broken-s4: train" in (out / "table.md").read_text()
    page = (out / "report.html").read_text()
    assert "diffmavil" in page
    assert "Several cells shared the machine: compare FLOPs, not wall clock." in page

    written = (out / "cells" / "diffmavil-s4.json").stat().st_mtime_ns
    cli.main([*arguments, "--only", "diffmavil", "--json"])
    shown = capsys.readouterr()
    assert "1 cells, 1 done before" in shown.err
    assert (out / "cells" / "diffmavil-s4.json").stat().st_mtime_ns == written
    (row,) = json.loads(shown.out)["variants"]
    assert (row["variant"], row["seeds"], row["clips"]) == ("diffmavil", [4], 48)
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--only", "diffmavil", "--optim.lr", "0.5"])
    assert stop.value.code == 2
    assert "is the result of another config or other data" in capsys.readouterr().err


def _check_done_cell(out: Path) -> None:
    cell = json.loads((out / "cells" / "diffmavil-s4.json").read_text())
    assert (cell["status"], cell["seed"], cell["jobs"]) == ("done", 4, 2)
    assert cell["changes"] == {"model.audio.decoder.input": "diffused", "model.video.decoder.input": "diffused",
                               "model.video.decoder.kind": "cross"}  # fmt: skip
    assert cell["training"]["flops_total"] == pytest.approx(cell["flops"]["total"], rel=1e-9)
    assert (cell["training"]["clips"], cell["training"]["steps"]) == (48, cell["flops"]["steps"])
    assert len(cell["flops"]["phases"]) == 3
    assert set(cell["stage_seconds"]) == {"train", "class_3_folds", "retrieval", "spectrum"}
    found = {evaluation["task"]: evaluation for evaluation in cell["evaluations"]}
    assert found["linear_probe"]["name"] == "Class, 3 folds"
    assert 0 <= found["linear_probe"]["ci"][0] <= found["linear_probe"]["value"] <= found["linear_probe"]["ci"][1] <= 1
    assert found["retrieval"]["baselines"]["chance"] == pytest.approx(1 / 6)
    assert set(found["spectrum"]["methods"]) == {"one_step", "sampled"}
    assert found["spectrum"]["clips"] == 6
    assert "torch" in cell["versions"]
    probe = json.loads((out / "runs" / "diffmavil-s4" / "eval" / "class_3_folds.json").read_text())
    assert probe["probe"]["pool"]["kind"] == "bands"
    assert [part["name"] for part in probe["parts"]] == ["fold 1", "fold 2", "fold 3"]
    assert str(out) not in json.dumps(cell)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_and_no_process(tmp_path: Path, shards: str) -> None:
    matrix = write_matrix(tmp_path, {"mavil": {}}, seeds=[0], retrieval=False, spectrum=False)
    out = tmp_path / "out"
    overrides = ["--schedule.samples", "10000", "--run.log-every", "1"]
    command = [sys.executable, "-m", "avpretrain", "ablate", str(matrix), "--data.shards", shards, "--out", str(out)]
    process = psutil.Popen([*command, *overrides], stderr=subprocess.PIPE)
    try:
        metrics = out / "runs" / "mavil-s0" / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        children = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 130
    finally:
        if process.poll() is None:
            process.kill()
    assert children
    assert not psutil.wait_procs(children, timeout=120)[1]
    assert list_checkpoints(out / "runs" / "mavil-s0" / "checkpoints")
    assert not (out / "cells").exists()


# --- what it says ----------------------------------------------------------------------------------------------------


def record(variant: str, seed: int, seconds: float, accuracy: float, missed: float, **more: Any) -> Done:
    share = {"value": missed, "ci": [missed, missed]}
    probe = {"task": "linear_probe", "label": "class", "modality": "audio", "metric": "accuracy", "value": accuracy,
             "ci": [accuracy - 0.1, accuracy + 0.1], "baselines": {"random_encoder": 0.3}}  # fmt: skip
    shares = dict.fromkeys(("missed_low", "missed_high", "detail_low", "detail_high"), share)
    methods = {"one_step": {**shares, "missed_by_mel": [missed], "detail_by_mel": [missed]}}
    per_clip = 100.0 if variant == "mavil" else 68.0
    flops = {"per_clip": per_clip, "total": 1e4 * per_clip, "components": {"fusion": {"training": 7.0}}}
    values = {
        **head(variant, seed, "done"),
        "config": {},
        "flops": {**flops, "clips": 10_000, "steps": 100, "phases": []},
        "training": {
            "clips": 10_000, "steps": 100, "seconds": seconds, "clips_per_second": 10_000 / seconds,
            "median_clips_per_second": 10_000 / seconds, "data_wait_share": 0.0, "flops_total": 1e4 * per_clip,
            "peak_memory_bytes": 5_000_000_000, "failed_clips": 0, "losses": {"loss": 1.0 + seed},
        },
        "evaluations": [probe, {"task": "spectrum", "methods": methods}],
        "jobs": 1, "hardware": {"gpus": ["a card"]}, "versions": {"torch": "2"}, "data": {"fingerprint": "5e"},
        "stage_seconds": {}, "parameters": 1, "precision": "fp32", "commit": None,
    }  # fmt: skip
    return Done.from_json(values | more)


def head(variant: str, seed: int, status: str) -> dict[str, Any]:
    return {
        "format": 1, "variant": variant, "seed": seed, "status": status, "training_hash": "a", "hash": "b",
        "extends": [], "changes": {}, "differences": {},
    }  # fmt: skip


def test_a_probe_is_called_by_its_name() -> None:
    evaluation = record("mavil", 0, 1.0, 0.5, 0.5).evaluations[0]
    assert evaluation.words == "class from audio, linear probe"
    assert replace(evaluation, name="ESC-10, bands").words == "ESC-10, bands"


def summarised(tmp_path: Path) -> Summary:
    matrix = write_matrix(tmp_path, {"mavil": {}, "diffmavil": DIFFMAVIL, "late": {"optim.lr": 0.1}})
    records = [record("mavil", s, 100.0 + s, v, 0.5) for s, v in enumerate((0.70, 0.74, 0.78))]
    records += [record("diffmavil", s, 80.0 + s, v, 0.4) for s, v in enumerate((0.73, 0.75, 0.80))]
    failed = Failure.from_json({**head("late", 0, "failed"), "stage": "train", "error": "out of memory"})
    return summary(load_ablation(str(matrix)), [*records, failed])


def test_summary_pairs_seeds_and_measures_savings(tmp_path: Path) -> None:
    found = summarised(tmp_path)
    mavil, diffmavil = found.variants
    assert (mavil.flops_saving, diffmavil.flops_saving) == (0.0, pytest.approx(0.32))
    assert diffmavil.time_saving == pytest.approx(1 - 81 / 101)
    result = diffmavil.results["class from audio, linear probe"]
    assert (result.median, result.values) == (0.75, (0.73, 0.75, 0.80))
    paired = stats.ttest_rel([0.73, 0.75, 0.80], [0.70, 0.74, 0.78]).confidence_interval()
    assert result.gain is not None and result.gain.mean == pytest.approx(0.02)
    assert result.gain.ci == pytest.approx((paired.low, paired.high))
    assert result.baselines == {"random_encoder": pytest.approx(0.3)}
    assert found.failed == {"late-s0": "train: out of memory"}
    assert (found.hardware, found.baseline) == ({"gpus": ["a card"]}, "mavil")
    assert Summary.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


@pytest.mark.parametrize("folder", ["ablation_tiny", "ablation_noise_h200"])
def test_cells_in_docs_are_read(folder: str) -> None:
    cells = sorted((Path("docs/results") / folder / "cells").glob("*.json"))
    records = [read_record(path) for path in cells]
    assert len(records) > 8
    for record_ in records:
        again = type(record_).from_json(json.loads(json.dumps(record_.to_json())))
        assert again == record_


def test_a_damaged_cell_is_said_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mavil-s0.json"
    path.write_text('{"status": "done", "format": 1, "variant": "mavil", "seed": "0"}')
    with pytest.raises(UserError, match=r"mavil-s0.json holds no cell \('seed' is '0'\); write it anew with"):
        read_record(path)


def test_table_says_it_in_words(tmp_path: Path) -> None:
    found = summarised(tmp_path)
    headings, mavil, diffmavil = table(found)
    shown = dict(zip(headings, diffmavil, strict=True))
    assert (shown["seeds"], shown["saved"], shown["saved a clip"]) == ("3", "32.0%", "19.8%")
    assert shown["class from audio, linear probe"].startswith("75.0% (")
    assert shown["high detail missed"] == "40.0% one step"
    assert dict(zip(headings, mavil, strict=True))["peak memory"] == "5.00 GB"
    text = markdown(found)
    assert "| diffmavil | 3 |" in text
    assert "Failed: late-s0: train: out of memory" in text
    assert "compare FLOPs, not wall clock" not in text


def test_shared_machines_are_cautioned_against(tmp_path: Path) -> None:
    matrix = load_ablation(str(write_matrix(tmp_path, {"mavil": {}})))
    shared = record("mavil", 0, 100.0, 0.7, 0.5, jobs=3)
    other = record("mavil", 1, 100.0, 0.7, 0.5, hardware={"gpus": []})
    text = markdown(summary(matrix, [shared, other]))
    assert "Several cells shared the machine" in text
    assert "different hardware" in text


def test_one_seed_has_the_interval_over_clips(tmp_path: Path) -> None:
    matrix = load_ablation(str(write_matrix(tmp_path, {"mavil": {}})))
    _, row = table(summary(matrix, [record("mavil", 0, 100.0, 0.7, 0.5)]))
    assert "70.0% (60.0 to 80.0)" in row
