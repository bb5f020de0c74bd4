"""The verb, on a tiny model: what it writes is a checkpoint as any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avpretrain.cli.main import run as run_verb
from avpretrain.compression.packed import read_packed
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.text.tokenizer import train_tokenizer
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_language_model, load_model
from avpretrain.methods.openelm.config import LanguageModelConfig
from avpretrain.methods.openelm.model import LanguageModel, save_pretrained
from tests.support.texts import sentences
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import random_batch, tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    DiffMAViL(tiny()).save_pretrained(path)
    return path


@torch.no_grad()
def distance(a: Path, b: Path) -> float:
    batch = random_batch(tiny())
    first, second = (load_model(p).encode_audio(batch.audio_BFM) for p in (a, b))
    return float((first - second).norm() / first.norm())


def test_fewer_bits_are_further_from_the_encoder(saved: Path, tmp_path: Path) -> None:
    errors = []
    for bits in (32, 8, 4):
        run_verb("compress", [str(saved), str(tmp_path / f"w{bits}"), "--bits", str(bits)])
        errors.append(distance(saved, tmp_path / f"w{bits}"))
    assert errors[0] == 0 < errors[1] < 0.02 < errors[2] < 0.5
    record = json.loads((tmp_path / "w4" / "compress.json").read_text())
    assert record["times_smaller"] > 4
    assert record["packed_bytes"] == (tmp_path / "w4" / "packed.safetensors").stat().st_size
    assert "towers.audio.encoder.blocks.0.mlp.fc2" in record["layers"]
    assert any(line.startswith("towers.audio.decoder") and "not used" in line for line in record["missed"])
    model = load_model(tmp_path / "w4").state_dict()
    packed = read_packed(tmp_path / "w4" / "packed.safetensors")
    assert all(torch.equal(model[name], tensor) for name, tensor in packed.items())
    before = load_model(saved).state_dict()
    assert all(torch.equal(model[name], before[name]) for name in before if "decoder" in name)


def test_sparse_and_ste(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_verb("compress", [str(saved), str(tmp_path / "s"), "--sparsity", "0.5", "--inputs", "propagated", "--json"])
    record = json.loads(capsys.readouterr().out)
    weight = load_model(tmp_path / "s").state_dict()["towers.video.encoder.blocks.1.attn.qkv.weight"]
    assert int((weight == 0).sum()) == weight.numel() // 2
    assert 1.5 < record["times_smaller"] < 2
    assert all(layer["error"] <= layer["error_naive"] for layer in record["layers"].values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name one of"),
        (["--bits", "8", "--sparsity", "0.5"], "name one of"),
        (["--bits", "1"], "--bits takes 2 to 16"),
        (["--sparsity", "1.2"], "--sparsity takes a share"),
        (["--bits", "4", "--onnx", "audio"], "--onnx takes --bits 8"),
    ],
)
def test_wrong_usage_is_one_line(saved: Path, tmp_path: Path, args: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_verb("compress", [str(saved), str(tmp_path / "out"), *args])
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_walked_is_refused(tmp_path: Path) -> None:
    DiffMAViL(tiny()).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"method": "unheard", "config": {}}))
    with pytest.raises(UserError, match="method 'unheard'"):
        run_verb("compress", [str(tmp_path / "m"), str(tmp_path / "out"), "--bits", "8"])
    assert not (tmp_path / "out").exists()


def test_real_clips_are_a_reference_and_tell_the_norms_errors(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", [Spec(seconds=1.0, size=(32, 40)) for _ in range(6)])
    with pytest.raises(UsageError, match="--inputs real takes --data"):
        run_verb("compress", [str(saved), str(tmp_path / "r"), "--bits", "4", "--inputs", "real"])
    args = [
        str(saved),
        str(tmp_path / "r"),
        "--bits",
        "4",
        "--inputs",
        "real",
        "--data",
        str(data),
        "--equalise",
        "--json",
    ]
    run_verb("compress", args)
    record = json.loads(capsys.readouterr().out)
    errors = record["norm_moment_error"]["towers.audio.encoder.blocks.0.norm1"]
    assert errors["mean_rms"] > 0 and errors["largest_std_ratio"] > 0
    assert {layer["input"] for layer in record["layers"].values()} == {"real data"}
    assert all(layer["error"] <= layer["error_naive"] for layer in record["layers"].values())


def test_a_language_model_stays_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([sentences(60)], 300)
    shape = LanguageModelConfig(vocabulary=300, context=16, width=32, depth=2, head_width=8).shape()
    (tmp_path / "lm").mkdir()
    save_pretrained(LanguageModel(shape), tmp_path / "lm")
    tokenizer.save(tmp_path / "lm")
    for inputs in ("norms", "propagated"):
        args = [str(tmp_path / "lm"), str(tmp_path / inputs), "--bits", "4", "--inputs", inputs, "--json"]
        run_verb("compress", args)
        record = json.loads(capsys.readouterr().out)
        assert record["missed"] == [] and record["times_smaller"] > 3
        model, again = load_language_model(tmp_path / inputs)
        assert again.sha256 == tokenizer.sha256
        assert all(len(row.unique()) <= 16 for row in model.blocks[0].mlp.fc1.weight.detach())
        assert max(len(row.unique()) for row in model.embed.weight.detach()) > 16  # 8 bits
    with pytest.raises(UsageError, match="neither --onnx nor --data"):
        run_verb("compress", [str(tmp_path / "lm"), str(tmp_path / "x.onnx"), "--bits", "8", "--onnx", "audio"])


@pytest.mark.slow
def test_int8_runs_in_onnxruntime(saved: Path, tmp_path: Path) -> None:
    """In a process of its own: run-time type checks, which tests switch on, can't be traced."""
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    path = tmp_path / "audio.onnx"
    command = [sys.executable, "-m", "avpretrain", "compress", str(saved), str(path), "--bits", "8", "--onnx", "audio"]
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    record = json.loads(done.stdout)
    assert json.loads(Path(f"{path}.json").read_text()) == record
    assert record["int8_bytes"] == path.stat().st_size < record["fp32_bytes"]
    proto = pytest.importorskip("onnx").load(path)
    assert not any(node.metadata_props for node in proto.graph.node)  # where in the source each is from
    assert "avpretrain.input" in {prop.key for prop in proto.metadata_props}
    clips = random_batch(tiny(), clips=3).audio_BFM
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokens, _ = session.run(None, {"audio": clips.numpy()})
    with torch.no_grad():
        expected = load_model(saved).encode_audio(clips).numpy()
    # weights of int8 are 0.15 off on processors without VNNI
    assert 0 < np.linalg.norm(tokens - expected) < 0.05 * np.linalg.norm(expected)
