"""Encoders of DiffMAViL in chunks: their window, their stream, their weights, and a run that begins with them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from avpretrain import api
from avpretrain.config.model import SIDES
from avpretrain.config.reader import to_dict
from avpretrain.core.errors import UsageError
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_speaker, make_method
from avpretrain.methods.speaker.chunks import ChunkEncoder, with_towers
from avpretrain.methods.speaker.config import FRAME_SAMPLES, Window
from avpretrain.methods.speaker.model import SpeakerModel
from avpretrain.methods.speaker.streaming import Stream
from tests.support.tiny_models import tiny
from tests.support.tracks import track_config

FRAMES, CHUNK = 14, 4


@pytest.fixture(scope="module")
def pretrained() -> DiffMAViL:
    torch.manual_seed(0)
    return DiffMAViL(tiny()).eval()


@pytest.fixture(scope="module")
def saved(pretrained: DiffMAViL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_model

    folder = tmp_path_factory.mktemp("pretrained")
    save_model(pretrained, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"method": "diffmavil", "config": to_dict(pretrained.cfg)}))
    return folder


@pytest.fixture(scope="module")
def model(pretrained: DiffMAViL) -> SpeakerModel:
    cfg = track_config("unused", model={"fusion": {"past": 2, "future": 1, "heads": 2}}).model
    return SpeakerModel(dataclasses.replace(cfg, encoder=with_towers(cfg.encoder, pretrained))).eval()


def noise() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    faces = torch.randint(256, (1, FRAMES, 16, 16), generator=made).float()
    return faces, 0.1 * torch.randn(1, FRAMES * FRAME_SAMPLES, generator=made)


def test_the_chunk_counts_as_future_and_nothing_beyond_it_is_seen(model: SpeakerModel) -> None:
    assert (model.cfg.face_window, model.cfg.audio_window) == (Window(7, 4), Window(8, 4))
    faces, waveform = (x.requires_grad_() for x in noise())
    logits_T = model.logits(faces, waveform)[0]
    for t in range(FRAMES):
        first, last = t - 4, t + 1  # of the vectors that are fused
        begin, end = first // CHUNK * CHUNK, (last // CHUNK + 1) * CHUNK - 1
        pixels, samples = torch.autograd.grad(logits_T[t], (faces, waveform), retain_graph=True)
        for grad, before in ((pixels[0].flatten(1), 0), (samples[0].unflatten(0, (FRAMES, -1)), 1)):
            seen = grad.abs().amax(dim=1).nonzero().flatten()
            assert int(seen.min()) == max(0, begin - before) and int(seen.max()) == min(FRAMES - 1, end)
            window = model.cfg.audio_window if before else model.cfg.face_window
            assert window.past is not None and window.future is not None
            assert t - window.past <= int(seen.min()) and int(seen.max()) <= t + window.future


def test_a_stream_equals_the_whole(model: SpeakerModel) -> None:
    faces, waveform = noise()
    with torch.no_grad():
        whole = model.logits(faces, waveform)[0].sigmoid()
    for step in (1, 3, 9):
        stream, scores = Stream(model), list[float]()
        for at in range(0, FRAMES, step):
            end = min(FRAMES, at + step)
            scores += stream.push(faces[0, at:end], waveform[0, at * FRAME_SAMPLES : end * FRAME_SAMPLES])
            assert end - stream.delay_frames <= len(scores) < end
        scores += stream.flush()
        assert np.abs(np.array(scores) - whole.numpy()).max() < 1e-5


def test_tokens_are_those_of_the_pretrained_encoders(model: SpeakerModel, pretrained: DiffMAViL) -> None:
    encoder = model.encoder
    assert isinstance(encoder, ChunkEncoder)
    for side in SIDES:
        encoder.tower(side).load_state_dict(pretrained.tower(side).encoder.state_dict())
    faces, _ = noise()
    colour = ((faces[:, :4, None] - encoder.mean_C[:, None, None]) / encoder.std_C[:, None, None]).expand(
        1, 4, 3, 16, 16
    )
    with torch.no_grad():
        tokens = pretrained.tower("video").encode(colour)[:, 1:].unflatten(1, (2, 4)).mean(dim=2)
        wanted = encoder.face_proj(tokens.repeat_interleave(2, dim=1))
        assert torch.allclose(encoder.see(faces[:, :4]), wanted, atol=1e-5)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_run_begins_with_pretrained_encoders(
    saved: Path, pretrained: DiffMAViL, tmp_path: Path, freeze: bool
) -> None:
    cfg = track_config(tmp_path / "run", schedule={"samples": 16})
    cfg = dataclasses.replace(cfg, pretrained=str(saved), freeze=freeze)
    assert api.train(cfg).finished
    config = tmp_path / "run" / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "method": "speaker"}))
    trained = load_speaker(tmp_path / "run")
    assert isinstance(trained.encoder, ChunkEncoder)
    for side in SIDES:
        there = pretrained.tower(side).encoder.state_dict()
        same = all(torch.equal(there[name], value) for name, value in trained.encoder.tower(side).state_dict().items())
        assert same == freeze
        near = [(there[name] - value).abs().max() for name, value in trained.encoder.tower(side).state_dict().items()]
        assert max(near) < 0.1, "two steps away from where it began"
    assert Stream(trained).delay_frames == 2 + 3


def test_what_does_not_fit_is_named(pretrained: DiffMAViL, saved: Path) -> None:
    encoder = track_config("unused").model.encoder
    with pytest.raises(UsageError, match="chunk 3 does not fit the pretrained patches"):
        with_towers(dataclasses.replace(encoder, chunk=3), pretrained)
    with pytest.raises(UsageError, match=r"face_size 12 must be a multiple of the pretrained patches' 8 x 8"):
        with_towers(dataclasses.replace(encoder, face_size=12), pretrained)
    method = make_method(dataclasses.replace(track_config("unused"), pretrained=str(saved)))
    method.load_encoder = None  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="can't be read here"):
        method.open()
