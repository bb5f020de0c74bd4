from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from avpretrain.bench.features import bench_features
from avpretrain.bench.loader import Bench, run_loader
from avpretrain.bench.manifest import measure_manifest, write_rows
from avpretrain.cli.main import main
from avpretrain.config.model import InputConfig
from avpretrain.methods.diffmavil.config import load_config
from tests.support.tiny_datasets import Spec, make_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", [Spec(seconds=1.0) for _ in range(12)])


@pytest.mark.slow
def test_loader_bench_counts_and_writes_what_it_prints(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "loader.json"
    arguments = ["--data.shards", str(root), "--data.num-workers", "1", "--schedule.batch.size", "8"]
    main(
        [
            "bench",
            "loader",
            "tiny_mavil",
            *arguments,
            "--clips",
            "24",
            "--rounds",
            "2",
            "--step",
            "--out",
            str(out),
            "--json",
        ]
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer == json.loads(out.read_text())
    first, second = answer["rounds"]
    assert first["loader"]["clips"] == second["loader"]["clips"] == answer["feeding_steps"]["clips"] == 24
    assert first["loader"]["failed"] == second["loader"]["failed"] == 0
    assert first["share"] == pytest.approx(first["loader"]["clips_per_second"] / first["bare"])
    shares = sorted((first["share"], second["share"]))
    assert shares[0] <= answer["loader_share_of_bare_decode"] <= shares[1]
    assert 0 <= answer["feeding_steps"]["wait_share"] <= 1
    assert answer["bare_decode_clips_per_second"] > 0
    assert second["loader"]["memory_end"]["children"], "the loader processes are counted"
    assert set(answer["milliseconds_a_clip"]) == {"order", "read", "decode_audio", "decode_video", "collate"}


def test_a_batch_counts_with_the_time_it_took(root: Path) -> None:
    cfg = load_config("tiny_mavil")
    data = dataclasses.replace(cfg.data, shards=(str(root),), num_workers=0)
    batch = dataclasses.replace(cfg.schedule.batch, size=8)
    bench = Bench(dataclasses.replace(cfg, data=data, schedule=dataclasses.replace(cfg.schedule, batch=batch)), clips=8)
    measured = run_loader(bench, lambda batch: time.sleep(0.2))
    assert measured["clips"] == 8
    assert measured["seconds"] >= 0.2
    assert measured["clips_per_second"] <= 8 / 0.2
    assert 0 <= measured["wait_share"] < 1


def test_bench_refuses_what_it_can_not_do(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["nothing"], "can't bench 'nothing'; choose from"),
        (["loader", "tiny_mavil"], "give --data.shards FOLDER"),
        (["loader", "--data.shards", "x"], "the config comes first"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["bench", *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_features_bench_compares_with_torchaudio() -> None:
    answer = bench_features(InputConfig(audio_frames=100), batch_size=2, device=torch.device("cpu"), repeats=1)
    assert answer["largest_relative_error"] < 1e-4
    assert set(answer["clips_per_second"]) == {"avpretrain", "torchaudio"}


def test_manifest_opens_fast_and_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    write_rows(tmp_path, 200_000)
    answer = measure_manifest(tmp_path, visits=200)
    assert answer["rows"] == 200_000 and answer["shards"] == 400
    assert answer["resume_seconds"] < 1
    assert answer["loader_open_seconds"] < answer["open_seconds"]
    assert answer["fetch_again_seconds"] < 1
    assert answer["plan_clips"] == 20 * 200_000
    assert 5_000 < answer["plan_steps"] <= 1 + 20 * 200_000 / 512  # batches grow from 512 on
    assert answer["own_bytes"] < answer["manifest_bytes"] / 2
