"""Strict reading of configs: every mistake is one line that names the key and the mend."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from avpretrain.config.reader import find_config, from_dict, learnt_config, presets, to_dict
from avpretrain.core.errors import UsageError
from avpretrain.methods.diffmavil.config import ModelConfig, TrainConfig
from avpretrain.methods.load import load_config

PRESETS = sorted(presets())


def test_the_presets_that_users_are_told_of_exist() -> None:
    sizes, kinds = ("tiny", "small", "base"), ("mavil", "diffmavil")
    assert {f"{size}_{kind}" for size in sizes for kind in kinds} <= set(PRESETS)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_diffmavil_differs_from_mavil_only_by_what_the_paper_changes(size: str) -> None:
    mavil, diffmavil = to_dict(load_config(f"{size}_mavil")), to_dict(load_config(f"{size}_diffmavil"))
    assert mavil["optim"] == diffmavil["optim"]
    for side in ("audio", "video"):
        mavil["model"][side].pop("decoder"), diffmavil["model"][side].pop("decoder")
    assert mavil["model"] == diffmavil["model"]


def test_base_is_the_paper_size() -> None:
    model = load_config("base_diffmavil").model
    assert (model.width, model.heads, model.audio.depth, model.video.depth) == (768, 12, 12, 12)
    assert model.audio_grid == (64, 8)
    assert model.video_grid == (4, 14, 14)


def test_a_config_survives_being_written_and_read() -> None:
    for name in PRESETS:
        cfg = load_config(name)
        if isinstance(cfg, TrainConfig):
            assert from_dict(TrainConfig, to_dict(cfg)) == cfg


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optm": {}}, ["'optm'", "did you mean 'optim'"]),
        ({"model": {"video": {"decoder": {"knd": "cross"}}}}, ["model.video.decoder.knd", "model.video.decoder.kind"]),
        ({"model": {"video": {"decoder": {"kind": "crss"}}}}, ["model.video.decoder.kind", "did you mean 'cross'"]),
        ({"schedule": {"epochs": "many"}}, ["schedule.epochs", "float", "'many'"]),
        ({"optim": {"lr": "1e-4"}}, ["optim.lr", "1.0e-4"]),
        ({"run": {"log_every": True}}, ["run.log_every", "int"]),
        ({"data": {"shards": "folder"}}, ["data.shards", "a list"]),
        ({"model": {"audio": {"patch": [16]}}}, ["model.audio.patch", "2 values"]),
        ({"model": {"width": 100}}, ["model.", "width 100", "heads 12"]),
        ({"model": {"input": {"audio_frames": 100}}}, ["audio.patch does not divide"]),
        ({"model": {"views": 1}}, ["loss.intra needs views 2"]),
        ({"schedule": {"batch": {"size": 12}}}, ["size 12", "multiple of 8"]),
        ({"schedule": []}, ["schedule", "mapping"]),
    ],
)
def test_mistakes_are_named(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        from_dict(TrainConfig, values)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_extends_lays_one_file_over_another(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optim: {lr: 1.0e-3, warmup: 0.2}\nseed: 3\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\noptim: {lr: 2.0e-3}\n")
    cfg = load_config(str(tmp_path / "b.yaml"))
    assert (cfg.name, cfg.seed, cfg.optim.lr, cfg.optim.warmup) == ("b", 3, 2e-3, 0.2)


def test_files_that_are_not_configs(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("extends: missing.yaml\n")
    (tmp_path / "d.yaml").write_text("a: [1\n")
    (tmp_path / "e.yaml").write_text("just text\n")
    for name, word in (("c", "missing.yaml"), ("d", "YAML"), ("e", "key: value")):
        with pytest.raises(UsageError, match=word):
            load_config(str(tmp_path / f"{name}.yaml"))
    with pytest.raises(UsageError, match="did you mean 'tiny_mavil'"):
        find_config("tiny_mvil")


def test_the_model_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().width = 3  # type: ignore[misc]


def test_mechanics_are_marked_where_they_are_defined() -> None:
    """One mark decides what resuming, grouping and comparing look at."""
    cfg = load_config("tiny_mavil")
    mechanical = {"shards": ("x",), "cache_dir": "x", "memory_cache_mb": 7, "num_workers": 9, "prefetch": 9}
    other = dataclasses.replace(
        cfg,
        name="x",
        output_dir="x",
        data=dataclasses.replace(cfg.data, **mechanical, max_bad_share=0.5),
        run=dataclasses.replace(cfg.run, precision="fp32", log_every=3),
    )
    assert learnt_config(other) == learnt_config(cfg)
    assert {"run", "name", "output_dir"}.isdisjoint(learnt_config(cfg))
    assert set(learnt_config(cfg)["data"]) == {"split", "mode", "augment", "shuffle_window"}
    for change in ({"shuffle_window": 3}, {"split": "all"}, {"mode": "stream"}):
        learns = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, **change))
        assert learnt_config(learns) != learnt_config(cfg)
