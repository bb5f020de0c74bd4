"""KV prediction is trained by the engine on a frozen base: it learns, resumes to the bit, generates, is measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from avpretrain import api
from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError
from avpretrain.methods.kv_prediction.config import KVPredictionConfig
from avpretrain.methods.kv_prediction.model import KVPredictor
from avpretrain.methods.load import config_of, load_language_model
from avpretrain.methods.openelm.generate import generate
from avpretrain.methods.openelm.held_out_log import read_held_out
from avpretrain.training.folders import list_checkpoints
from avpretrain.training.metrics import read_metrics
from tests.support.texts import VALUES, text_config, write_texts
from tests.support.tiny_runs import final_state, same_bits


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("text") / "texts")


@pytest.fixture(scope="module")
def base(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    assert api.train(text_config(texts, run, run={"checkpoint_every": 96}, data={"held_out": ""})).finished
    return run


def kv_config(base: Path, text: Path, run: Path, **sections: Any) -> KVPredictionConfig:
    values = {
        "name": "kv", "method": "kv_prediction", "base": str(base), "output_dir": str(run),
        "data": {"shards": [str(text)]}, "schedule": {"samples": 96, "batch": {"size": 8}},
        "optim": VALUES["optim"], "run": VALUES["run"], **sections,
    }  # fmt: skip
    cfg = config_of(values)
    assert isinstance(cfg, KVPredictionConfig)
    return cfg


@pytest.fixture(scope="module")
def straight(base: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("kv") / "run"
    assert api.train(kv_config(base, texts, run)).finished
    return run


def test_it_learns_and_the_base_stays(straight: Path, base: Path) -> None:
    lines, held_out = read_metrics(straight), read_held_out(straight)
    assert lines[-1]["cache_l1"] < lines[0]["cache_l1"] and lines[-1]["nll"] < lines[0]["nll"]
    assert held_out[-1]["bits_per_byte"] < held_out[0]["bits_per_byte"] and "auxiliary_nll" in held_out[0]
    before, after = load_file(base / "model" / "model.safetensors"), final_state(straight)
    assert all(torch.equal(value, after[f"base.{name}"]) for name, value in before.items())
    assert not any(name.startswith("optimizer.base.") for name in after), "no state of what is not trained"
    start = before["blocks.0.attn.qkv.weight"]
    assert not torch.equal(start, after["auxiliary.blocks.0.attn.qkv.weight"])


def test_a_stopped_run_resumes_to_the_bit(straight: Path, base: Path, texts: Path, tmp_path: Path) -> None:
    cfg = kv_config(base, texts, tmp_path / "run")
    assert not api.train(cfg, stop_at=40).finished
    assert api.train(cfg).finished
    assert same_bits(final_state(tmp_path / "run"), final_state(straight))


def test_what_was_learnt_is_used_to_generate_and_to_measure(
    straight: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_language_model(straight)
    assert isinstance(model, KVPredictor)
    prompt = [tokenizer.separator, *tokenizer.encode("The ")]
    greedy = list(generate(model, prompt, 4, temperature=0))
    main(["generate", str(straight), "The ", "--tokens", "4", "--temperature", "0", "--debug"])
    assert capsys.readouterr().out == tokenizer.decode(prompt + greedy) + "\n"
    main(["perplexity", str(straight), str(texts / "val.txt"), "--out", str(tmp_path / "r.json"), "--debug"])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["bits_per_byte"] == pytest.approx(read_held_out(straight)[-1]["bits_per_byte"], rel=1e-4)
    main(["report", str(straight), "--out", str(tmp_path / "report.html"), "--debug"])
    assert "Bits per byte" in (tmp_path / "report.html").read_text()


def test_a_checkpoint_is_enough_to_go_on_from_and_to_load(straight: Path, base: Path) -> None:
    folder = list_checkpoints(straight / "checkpoints")[0]
    model, _ = load_language_model(folder)
    assert isinstance(model, KVPredictor) and not any(p.requires_grad for p in model.base.parameters())


def test_a_smaller_model_of_its_own_reads_too(base: Path, texts: Path, tmp_path: Path) -> None:
    model = {**VALUES["model"], "width": 16, "depth": 1}
    cfg = kv_config(
        base,
        texts,
        tmp_path / "run",
        auxiliary={"kind": "canonical", "model": model},
        schedule={"samples": 16, "batch": {"size": 8}},
    )
    assert api.train(cfg).finished
    found, _ = load_language_model(tmp_path / "run")
    assert isinstance(found, KVPredictor)
    assert found.shape.layer_map == (0, 0) and found.shape.auxiliary.width == 16


def test_its_cost_is_counted_on_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flops", "kvp_tiny", "--json", "--debug"])
    found = json.loads(capsys.readouterr().out)
    main(["flops", "openelm_tiny", "--json", "--debug"])
    base = json.loads(capsys.readouterr().out)
    # a forward pass of the base for its targets, one with gradients that reach activations alone, and the small model
    assert 0.9 < found["per_token"] / base["per_token"] < 1.8
    assert found["parameters"] > base["parameters"]


def test_what_does_not_fit_is_said(base: Path, texts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UsageError, match="no base: give --base RUN"):
        api.train(dataclasses.replace(kv_config(base, texts, run), base=""))
    with pytest.raises(UsageError, match="layer_map has 1 entries; the base has 2 layers"):
        api.train(kv_config(base, texts, run, layer_map=[0]))
    with pytest.raises(UsageError, match=r"keep must be 0.25, 0.5 or 0.75, got 0.3"):
        kv_config(base, texts, run, auxiliary={"keep": 0.3})
    with pytest.raises(UsageError, match=r"has 2 layers; a copy that keeps 0.5 of the base's has 1"):
        api.train(kv_config(base, texts, run, auxiliary={"init": str(base)}))
    other = tmp_path / "other"
    main(["tokens", str(texts / "one_train.txt"), str(other), "--vocabulary", "280", "--debug"])
    with pytest.raises(UsageError, match="packed by another tokenizer than the base's"):
        api.train(kv_config(base, other, run))
    assert not run.exists()
