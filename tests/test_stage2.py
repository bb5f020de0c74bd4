"""Stage 2: a student predicts a frozen teacher's features of what is hidden."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_models import random_batch, smooth_batch, tiny

from avpretrain.errors import UsageError
from avpretrain.losses import normalise_patches
from avpretrain.models.diffmavil import DiffMAViL
from avpretrain.models.teacher import Teacher, load_teacher


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(1)
    return Teacher(DiffMAViL(tiny()))


def test_teacher_is_frozen_and_sees_whole_clips(teacher: Teacher) -> None:
    batch = random_batch(teacher.cfg)
    features = teacher(batch)
    assert features.audio_BLD.shape == (4, 16, 48)
    assert features.video_BLD.shape == (4, 32, 48)
    assert not features.audio_BLD.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any("decoder" in name for name in teacher.state_dict())


def test_features_are_contextual(teacher: Teacher) -> None:
    """A change of the picture changes the features of the sound."""
    batch = random_batch(teacher.cfg)
    other = dataclasses.replace(batch, video_BTCHW=batch.video_BTCHW + 1)
    assert not torch.allclose(teacher(batch).audio_BLD, teacher(other).audio_BLD)


@pytest.mark.parametrize("source", ["mask_token", "diffused"])
@pytest.mark.parametrize("noise_on", ["target", "pixel"])
def test_targets_are_the_teachers_tokens_at_hidden_places(teacher: Teacher, source: str, noise_on: str) -> None:
    student = DiffMAViL(tiny(source=source, objective="features", diffusion={"noise_on": noise_on}))
    batch = random_batch(student.cfg)
    features = teacher(batch)
    view = student.encode_masked(batch, 0.75, 0.75)["video"]
    out = student.denoise("video", view, batch.seed_B, 0, features)
    rows = torch.arange(4)[:, None]
    expected = normalise_patches(features.video_BLD[rows, view.mask.ids_hidden_BN])
    torch.testing.assert_close(out.target_BNQ, expected)
    student(batch, 0.75, 0.75, features)["loss"].backward()
    assert all(p.grad is not None for p in student.parameters())


def test_a_student_without_its_teacher_is_an_error() -> None:
    student = DiffMAViL(tiny(objective="features"))
    with pytest.raises(ValueError, match="teacher"):
        student(random_batch(student.cfg), 0.75, 0.75)
    with pytest.raises(ValueError, match="predicts no patches"):
        student.reconstruct(random_batch(student.cfg), 0.75, 0.75)


def test_teacher_must_fit(tmp_path: Path) -> None:
    DiffMAViL(tiny()).save_pretrained(tmp_path)
    assert load_teacher(tmp_path, tiny(objective="features")).cfg == tiny()
    with pytest.raises(UsageError, match="model.width"):
        load_teacher(tmp_path, tiny(width=96))


@pytest.mark.slow
def test_student_beats_the_mean_teacher_feature(teacher: Teacher) -> None:
    """On clips it did not train on, the student's error falls below that of the best constant prediction."""
    torch.manual_seed(0)
    student = DiffMAViL(tiny(source="mask_token", objective="features", views=1, loss={"intra": 0.0, "inter": 0.0}))
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    for step in range(150):
        batch = smooth_batch(student.cfg, clips=16, seed=step)
        optimizer.zero_grad()
        student(batch, 0.75, 0.75, teacher(batch))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    held_out = smooth_batch(student.cfg, clips=32, seed=10_000)
    features = teacher(held_out)
    losses = student(held_out, 0.75, 0.75, features)
    for name, tokens in (("audio", features.audio_BLD), ("video", features.video_BLD)):
        target = normalise_patches(tokens)
        constant = (target - target.mean(dim=(0, 1))).square().mean()
        placewise = (target - target.mean(dim=0)).square().mean()
        assert losses[f"reconstruction_{name}"] < 0.8 * constant
        assert losses[f"reconstruction_{name}"] < placewise  # the mean of each place is the harder constant
