"""A score depends on the frames that its config promises and on no other, from pixels and waveform to the score; a
stream gives the same scores.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avpretrain.config.reader import from_dict
from avpretrain.core.errors import UsageError
from avpretrain.methods.speaker.config import FRAME_SAMPLES, SpeakerModelConfig, Window, with_fusion
from avpretrain.methods.speaker.fusion import Recurrent, default_hidden, make_fusion
from avpretrain.methods.speaker.model import SpeakerModel
from avpretrain.methods.speaker.streaming import Stream

FRAMES, SIZE = 14, 16
WIDE = {"face_past": 1, "audio_past": 2, "look_ahead": 1, "audio_reach": "inside"}
FUSIONS: list[tuple[dict[str, Any], Window]] = [
    ({"past": 3, "future": 2}, Window(6, 2)),
    ({"past": 0, "future": 0}, Window(0, 0)),
    ({"past": -1, "future": 1}, Window(None, 1)),
    ({"past": 2, "future": -1}, Window(4, None)),
    ({"past": -1, "future": -1}, Window(None, None)),
    ({"kind": "gru"}, Window(None, 0)),
    ({"kind": "bigru"}, Window(None, None)),
    ({"kind": "frame"}, Window(0, 0)),
    ({"kind": "tcn", "past": 3}, Window(6, 0)),
]
NAMES = ["-".join(f"{k}{v}" for k, v in fusion.items()) for fusion, _ in FUSIONS]


def build(fusion: dict[str, Any], encoder: dict[str, Any] | None = None) -> SpeakerModel:
    torch.manual_seed(0)
    values = {
        "width": 16,
        "encoder": {"face_size": SIZE, "channels": [4, 8], "mels": 8, "audio_hidden": 16, **(encoder or {})},
        "fusion": {"heads": 2, **fusion},
    }
    return SpeakerModel(from_dict(SpeakerModelConfig, values)).eval()


def noise(frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    faces = torch.randint(256, (1, frames, SIZE, SIZE), generator=made).float()
    return faces, 0.1 * torch.randn(1, frames * FRAME_SAMPLES, generator=made)


@pytest.mark.parametrize("encoder", [{}, WIDE], ids=["strict", "wide"])
@pytest.mark.parametrize(("fusion", "window"), FUSIONS, ids=NAMES)
def test_the_gradient_is_zero_outside_of_the_window_and_reaches_its_ends(
    fusion: dict[str, Any], window: Window, encoder: dict[str, Any]
) -> None:
    model = build(fusion, encoder)
    assert model.cfg.fusion.window == window
    faces, waveform = (x.requires_grad_() for x in noise())
    logits_T = model.logits(faces, waveform)[0]
    reached: list[list[int]] = [[], []]
    for t in range(FRAMES):
        pixel_grad, sample_grad = torch.autograd.grad(logits_T[t], (faces, waveform), retain_graph=True)
        for side, grad in enumerate((pixel_grad[0].flatten(1), sample_grad[0].unflatten(0, (FRAMES, -1)))):
            reached[side] += [int(s) - t for s in grad.abs().amax(dim=1).nonzero().flatten()]
    last = FRAMES - 1
    for offsets, promised in zip(reached, (model.cfg.face_window, model.cfg.audio_window), strict=True):
        assert min(offsets) == -last if promised.past is None else min(offsets) == -promised.past
        assert max(offsets) == last if promised.future is None else max(offsets) == promised.future


def test_windows_of_frames_and_of_audio_add_up() -> None:
    cfg = build({"past": 3, "future": 2}, WIDE).cfg
    assert (cfg.face_window, cfg.audio_window, cfg.delay_frames) == (Window(7, 3), Window(8, 3), 3)
    causal = build({"past": 3, "future": 2}).cfg
    assert (causal.face_window, causal.audio_window) == (Window(6, 2), Window(7, 2))


@pytest.mark.parametrize("piece", [1, 3])
@pytest.mark.parametrize("encoder", [{}, WIDE], ids=["strict", "wide"])
@pytest.mark.parametrize("fusion", [f for f, w in FUSIONS if w.future is not None], ids=str)
def test_a_stream_in_chunks_of_any_size_equals_the_whole(
    fusion: dict[str, Any], encoder: dict[str, Any], piece: int
) -> None:
    model, frames = build(fusion, encoder), 24
    faces, waveform = noise(frames)
    with torch.no_grad():
        whole = model.logits(faces, waveform)[0].sigmoid()
    chunks, stream, scores, at = random.Random(piece), Stream(model, piece), list[float](), 0
    while at < frames:
        end = min(frames, at + chunks.randint(0, 5))
        scores += stream.push(
            faces[0, at:end].byte().numpy(), waveform[0, at * FRAME_SAMPLES : end * FRAME_SAMPLES].numpy()
        )
        at = end
        assert len(scores) == max(0, at - stream.delay_frames) == stream.answered
    scores += stream.flush()
    assert stream.flush() == []
    assert np.abs(np.array(scores) - whole.numpy()).max() < 1e-5
    with pytest.raises(ValueError, match="has been flushed"):
        stream.push(faces[0, :1], waveform[0, :FRAME_SAMPLES])


def test_frames_that_are_far_into_a_stream_are_scored_as_early_ones() -> None:
    model = build({"past": 3, "future": 1})
    faces, waveform = noise()
    near, far = Stream(model), Stream(model)
    for part in far.fusion.parts:  # type: ignore[attr-defined]
        part.ring.written = part.ring.rows * 1_000_003  # two days and more
    offset = [stream.push(faces[0], waveform[0]) + stream.flush() for stream in (near, far)]
    assert np.abs(np.array(offset[0][8:]) - np.array(offset[1][8:])).max() < 1e-5


def test_what_needs_all_the_future_is_refused_as_a_stream() -> None:
    for fusion in ({"kind": "bigru"}, {"past": 2, "future": -1}):
        with pytest.raises(UsageError, match="sees all the future"):
            Stream(build(fusion))


def test_faces_and_audio_that_do_not_fit_are_named() -> None:
    stream = Stream(build({"past": 1}))
    with pytest.raises(ValueError, match=r"the model takes \[n, 16, 16\]"):
        stream.push(np.zeros((1, 8, 8), np.uint8), np.zeros(FRAME_SAMPLES, np.float32))
    with pytest.raises(ValueError, match="2 frames need 1280 samples"):
        stream.push(np.zeros((2, 16, 16), np.uint8), np.zeros(FRAME_SAMPLES, np.float32))


def test_memory_of_the_past_is_what_the_formula_says() -> None:
    sizes = [Stream(build({"past": past, "future": 2})).state_bytes for past in (4, 20)]
    assert sizes[1] - sizes[0] == 16 * build({"past": 4}).cfg.past_frame_bytes == 16 * 2 * 2 * 16 * 4
    stream, (faces, waveform) = Stream(build({"past": 4, "future": 2})), noise(40)
    before = stream.state_bytes
    for t in range(40):
        stream.push(faces[0, t : t + 1], waveform[0, t * FRAME_SAMPLES : (t + 1) * FRAME_SAMPLES])
    queries_and_residuals = 2 * 2 * 16 * 4  # of the two frames whose future is not there yet
    assert stream.state_bytes == before + queries_and_residuals


def test_a_gru_takes_steps_as_it_takes_the_sequence() -> None:
    fusion = build({"kind": "gru"}).fusion
    assert isinstance(fusion, Recurrent)
    x, state, steps = torch.randn(1, 9, 16), None, []
    for t in range(9):
        out, state = fusion.ahead(x[:, t : t + 1], state)
        steps.append(out)
    assert torch.allclose(torch.cat(steps, dim=1), fusion.ahead(x)[0], atol=1e-6)


@pytest.mark.parametrize("fusion", [f for f, _ in FUSIONS], ids=NAMES)
def test_padding_changes_no_score(fusion: dict[str, Any]) -> None:
    model, (faces, waveform) = build(fusion), noise()
    short = 9
    valid = (torch.arange(FRAMES) < short)[None]
    with torch.no_grad():
        padded = model.logits(faces, waveform, valid)[0, :short]
        alone = model.logits(faces[:, :short], waveform[:, : short * FRAME_SAMPLES])[0]
    assert torch.allclose(padded, alone, atol=1e-5)


def test_baselines_have_as_many_parameters() -> None:
    cfg = SpeakerModelConfig()
    wanted = sum(p.numel() for p in make_fusion(cfg.fusion, cfg.width).parameters())
    for kind in ("gru", "bigru", "frame", "tcn"):
        fusion = with_fusion(cfg, kind=kind).fusion
        assert sum(p.numel() for p in make_fusion(fusion, cfg.width).parameters()) == pytest.approx(wanted, rel=0.01)
        stated = with_fusion(cfg, kind=kind, hidden=default_hidden(fusion, cfg.width)).fusion
        assert default_hidden(stated, cfg.width) == stated.hidden
