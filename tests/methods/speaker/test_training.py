"""A detector is trained by the engine: it learns, resumes to the bit, and is read again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from avpretrain import api
from avpretrain.config.schedules import Phase
from avpretrain.core.errors import UsageError, UserError
from avpretrain.methods.load import load_config, load_speaker, make_method
from avpretrain.methods.speaker.config import FRAME_SAMPLES, SpeakerConfig
from avpretrain.methods.speaker.evaluate import labelled_scores, track_scores
from avpretrain.methods.speaker.model import SpeakerModel
from avpretrain.methods.speaker.samples import Samples
from avpretrain.methods.speaker.streaming import Stream
from avpretrain.training.metrics import read_metrics
from tests.support.tiny_runs import final_state, same_bits
from tests.support.tracks import MadeTracks, track_config


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("speaker") / "run"
    assert api.train(track_config(run)).finished
    return run


@pytest.fixture(scope="module")
def model(straight: Path) -> SpeakerModel:
    """What was trained, under its registered name."""
    config = straight / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "method": "speaker"}))
    return load_speaker(straight)


def test_it_learns(straight: Path, model: SpeakerModel) -> None:
    lines = read_metrics(straight)
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert {"fused", "visual"} <= lines[-1].keys()
    clips = MadeTracks(seed=1)
    scores, positive, counts = labelled_scores(model, (clips[i] for i in range(len(clips))))
    assert sum(counts) == len(scores) == sum(int((clips[i].labels >= 0).sum()) for i in range(len(clips)))
    assert scores[positive].mean() > scores[~positive].mean() + 0.3
    assert json.loads((straight / "run.json").read_text())["data"] == {
        "fingerprint": "made", "clips": 24, "split": "train"
    }  # fmt: skip


def test_a_stopped_run_resumes_to_the_bit(straight: Path, tmp_path: Path) -> None:
    cfg = track_config(tmp_path / "run")
    assert not api.train(cfg, stop_at=64).finished
    assert api.train(cfg).finished
    assert same_bits(final_state(tmp_path / "run"), final_state(straight))


def test_the_stream_of_a_trained_model_gives_its_scores(model: SpeakerModel) -> None:
    clip, stream = MadeTracks()[3], Stream(model)
    scores = stream.push(clip.faces, clip.waveform) + stream.flush()
    assert np.abs(np.array(scores) - track_scores(model, clip)).max() < 1e-5


def test_long_tracks_go_through_a_stream(model: SpeakerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, module = MadeTracks()[3], "avpretrain.methods.speaker.evaluate"
    whole = track_scores(model, clip)
    monkeypatch.setattr(f"{module}.LONG", 10)
    monkeypatch.setattr(f"{module}.PUSHED", 7)
    monkeypatch.setattr(f"{module}.PIECE", 4)
    assert np.abs(track_scores(model, clip) - whole).max() < 1e-5
    monkeypatch.setattr(Stream, "push", None)
    with pytest.raises(TypeError):
        track_scores(model, clip)


@pytest.mark.parametrize("kind", ["bigru", "tcn"])
def test_baselines_train(kind: str, tmp_path: Path) -> None:
    cfg = track_config(tmp_path / "run", schedule={"samples": 16})
    cfg = dataclasses.replace(
        cfg, model=dataclasses.replace(cfg.model, fusion=dataclasses.replace(cfg.model.fusion, kind=kind))
    )
    assert api.train(cfg).finished
    values = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert values["config"]["fusion"]["kind"] == kind and values["config"]["fusion"]["hidden"] > 0


def test_samples_are_functions_of_their_position() -> None:
    cfg = track_config("unused", data={"mix": 0.5}).data
    samples = Samples(MadeTracks(), cfg, 0)
    together, alone = samples.batch(range(40, 44)), samples.batch([42])
    for a, b in zip(dataclasses.astuple(together), dataclasses.astuple(alone), strict=True):
        assert torch.equal(a[2:3], b)
    clip = MadeTracks()[samples._order.window(42)]
    count = int(alone.frames_B)
    assert count == min(32, len(clip.labels))
    assert torch.all(alone.labels_BT[0, count:] == -1)
    assert torch.all(alone.waveform_BS[0, count * FRAME_SAMPLES :] == 0)
    mouths = [samples.batch([p]).faces_BTHW[0, 0] == 20 for p in range(16)]
    sides = {(bool(mouth[:, 3].any()), bool(mouth[:, 12].any())) for mouth in mouths if mouth.any()}
    assert sides == {(True, False), (False, True)}, "mouths lie off the middle by one column, and some are mirrored"


def test_the_loss_is_a_mean_over_samples_so_that_ranks_may_share_them() -> None:
    cfg = track_config("unused")
    model, samples = make_method(cfg).model(), Samples(MadeTracks(), cfg.data, 0)
    whole, halves = samples.batch(range(8)), [samples.batch(range(r, 8, 2)) for r in range(2)]
    with torch.no_grad():
        losses = [model(half, Phase())["loss"] for half in halves]
        assert torch.allclose(model(whole, Phase())["loss"], (losses[0] + losses[1]) / 2, atol=1e-6)
    unlabelled = dataclasses.replace(whole, labels_BT=torch.full_like(whole.labels_BT, -1))
    assert model(unlabelled, Phase())["loss"].item() == 0


def test_weights_of_another_model_are_refused(straight: Path, model: SpeakerModel, tmp_path: Path) -> None:
    cfg = dataclasses.replace(track_config(tmp_path / "run", model={"width": 32}), init=str(straight))
    with pytest.raises(UsageError, match=r"is another model: model\.width, model\.fusion differ"):
        api.train(cfg)
    fresh = make_method(dataclasses.replace(cfg, model=track_config("x").model))
    started = fresh.model()
    fresh.initialise(started)
    assert all(torch.equal(p, q) for p, q in zip(started.parameters(), model.parameters(), strict=True))
    (tmp_path / "model.safetensors").write_bytes((straight / "model" / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"method": "openelm", "config": {}}))
    with pytest.raises(UserError, match="is of a model of method openelm, which detects no speakers"):
        load_speaker(tmp_path)


def test_presets_are_of_this_method_and_cost_something() -> None:
    for name in ("speaker_tiny", "speaker_base", "speaker_gru"):
        cfg = load_config(name)
        assert isinstance(cfg, SpeakerConfig)
    method = make_method(load_config("speaker_tiny"))
    assert method.flops(method.phase(0.0), 1) > 1e8


def test_configs_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="width 10 must be a multiple of twice the 4 heads"):
        track_config("x", model={"width": 10, "fusion": {"heads": 4}})
    with pytest.raises(UsageError, match="a tcn's past is bounded"):
        track_config("x", model={"fusion": {"kind": "tcn", "past": -1}})
