"""Exports: a folder with a model card, and ONNX files that onnxruntime runs to the same numbers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from avpretrain.cli.main import run as run_verb
from avpretrain.config.model import SIDES
from avpretrain.core.errors import UsageError
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model
from tests.support.tiny_models import random_batch, tiny


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    run = tmp_path / "run"
    DiffMAViL(tiny()).save_pretrained(run / "model")
    return run


def test_folder_with_a_card(saved: Path, tmp_path: Path) -> None:
    data = {"clips": 1234, "split": "train", "fingerprint": "0123456789abcdef"}
    (saved / "run.json").write_text(json.dumps({"data": data}))
    (saved / "eval").mkdir()
    result = {"task": "linear_probe", "label": "class", "modality": "audio", "metric": "accuracy", "accuracy": 0.5}
    (saved / "eval" / "probe.json").write_text(json.dumps({**result, "ci": [0.4, 0.6]}))
    run_verb("export", [str(saved), str(tmp_path / "out")])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "avpretrain"
    assert card.data.license == "apache-2.0"
    assert "Trained on 1,234 clips (split train, fingerprint 0123456789ab)." in card.text
    assert "linear probe of class (audio): accuracy 0.500, 95% interval [0.400, 0.600]." in card.text
    assert "mean and std are 0.0 and 0.5" in card.text
    assert card.data.pipeline_tag == "feature-extraction"
    (scored,) = card.data.eval_results
    assert (scored.task_type, scored.metric_type, scored.metric_value) == ("audio-classification", "accuracy", 0.5)
    model, batch = load_model(saved), random_batch(tiny())
    copy = DiffMAViL.from_pretrained(tmp_path / "out")
    assert torch.equal(model.encode_audio(batch.audio_BFM), copy.encode_audio(batch.audio_BFM))


def test_wrong_places_are_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        run_verb("export", [str(saved), str(tmp_path / "file")])
    with pytest.raises(UsageError, match="name a file"):
        run_verb("export", [str(saved), str(tmp_path), "--onnx", "audio"])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_onnx_runs_to_the_same_numbers_at_any_length(tmp_path: Path) -> None:
    """In a process of its own: run-time type checks, which tests switch on, can't be traced."""
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    torch.manual_seed(0)
    cfg = tiny(audio={"positions": "learned", "depth": 1}, video={"depth": 1})  # video has fixed positions
    model = DiffMAViL(cfg).eval()
    model.save_pretrained(tmp_path / "model")
    fixed = [str(tmp_path / "model"), str(tmp_path / "fixed.onnx"), "--onnx", "audio", "--fixed-length", "--json"]
    folder = [str(tmp_path / "model"), str(tmp_path / "out"), "--format", "onnx", "--json"]
    code = f"from avpretrain.cli.main import run\nfor a in ({fixed}, {folder}): run('export', a), print(end='\\0')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(json.loads(text)["largest_difference"] <= 1e-4 for text in done.stdout.split("\0")[:2])
    session = runtime.InferenceSession(str(tmp_path / "fixed.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [64, 32]
    assert ModelCard.load(tmp_path / "out" / "README.md").data.library_name == "onnx"
    shapes = {"audio": (32,), "video": (3, 32, 32)}
    for side in SIDES:
        session = runtime.InferenceSession(str(tmp_path / "out" / f"{side}.onnx"), providers=["CPUExecutionProvider"])
        encoder = model.tower(side).encoder
        trained, patch = encoder.grid[0], encoder.patches.size[0]
        for clips, steps in enumerate((1, trained - 1, trained, trained + 1, 5 * trained), start=1):
            clip = torch.randn(clips, steps * patch, *shapes[side])
            tokens, embedding = session.run(["tokens", "embedding"], {side: clip.numpy()})
            with torch.no_grad():
                expected = encoder.encode(clip)
            np.testing.assert_allclose(tokens, expected.numpy(), atol=1e-4, err_msg=f"{side}, {steps} steps")
            np.testing.assert_allclose(embedding, encoder.pool(expected).numpy(), atol=1e-4)
        described = session.get_modelmeta().custom_metadata_map
        assert json.loads(described["avpretrain.input"])["audio_std"] == 0.5


def test_fixed_length_is_for_onnx(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="add --format onnx"):
        run_verb("export", [str(saved), str(tmp_path / "out"), "--fixed-length"])
