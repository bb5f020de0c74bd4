"""Stage 2: a student predicts a frozen teacher's features of what is hidden."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from avpretrain.api import train
from avpretrain.cli.main import run as run_verb
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.batch import AVBatch
from avpretrain.data.features import Features
from avpretrain.data.read.dataset import ClipSet, eval_loader
from avpretrain.methods.diffmavil.config import Stage2Config, TrainConfig
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.diffmavil.self_training import load_teacher
from avpretrain.methods.diffmavil.self_training import start_from as copy_start
from avpretrain.methods.diffmavil.teacher import Teacher, require_fit
from avpretrain.methods.load import load_model
from avpretrain.nn.losses import normalise_patches
from avpretrain.training.metrics import read_metrics
from tests.support.tiny_models import random_batch, tiny
from tests.support.tiny_runs import tiny_config, tiny_data


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
    out = student.tower("video").denoise(view, batch.seed_B, 0, features.video_BLD)
    rows = torch.arange(4)[:, None]
    expected = normalise_patches(features.video_BLD[rows, view.mask.ids_hidden_BN])
    torch.testing.assert_close(out.target_BNQ, expected)
    student(batch, MaskRatios(0.75, 0.75), features)["loss"].backward()
    assert all(p.grad is not None for p in student.parameters())


def test_a_student_without_its_teacher_is_an_error() -> None:
    student = DiffMAViL(tiny(objective="features"))
    with pytest.raises(ValueError, match="teacher"):
        student(random_batch(student.cfg), MaskRatios(0.75, 0.75))
    with pytest.raises(ValueError, match="predicts no patches"):
        student.reconstruct(random_batch(student.cfg), 0.75, 0.75)


def test_teacher_must_fit() -> None:
    require_fit(Teacher(DiffMAViL(tiny())), tiny(objective="features"))
    with pytest.raises(UsageError, match=r"model\.width"):
        require_fit(Teacher(DiffMAViL(tiny())), tiny(width=96))


@pytest.mark.slow
@pytest.mark.parametrize("start_from", ["scratch", "teacher"])
def test_rounds_by_one_command(tmp_path: Path, start_from: str) -> None:
    """Each student's teacher is the student before it; the same command again finds all done."""
    data = tiny_data(tmp_path / "data")
    train(tiny_config(data, tmp_path / "stage1", schedule={"samples": 24}))
    cfg = tiny_config(
        data, tmp_path / "stage2", model={"objective": "features"}, schedule={"samples": 24}, run={"preview_clips": 2}
    )
    stage2 = Stage2Config(teacher=str(tmp_path / "stage1"), rounds=2, start_from=start_from)
    cfg = dataclasses.replace(cfg, stage2=stage2)
    assert train(cfg).finished
    for number, teacher in ((1, tmp_path / "stage1"), (2, tmp_path / "stage2" / "round-1")):
        run = tmp_path / "stage2" / f"round-{number}"
        assert yaml.safe_load((run / "config.yaml").read_text())["stage2"]["teacher"] == str(teacher)
        assert read_metrics(run)[-1]["seen"] >= 24
    final = load_model(tmp_path / "stage2")
    last = load_model(tmp_path / "stage2" / "round-2")
    assert torch.equal(final.audio_encoder.patch_embed.weight, last.audio_encoder.patch_embed.weight)
    assert final.cfg.objective == "features"
    before = read_metrics(tmp_path / "stage2" / "round-1")
    assert train(cfg).finished
    assert read_metrics(tmp_path / "stage2" / "round-1") == before


def test_a_student_may_start_from_its_teacher(tmp_path: Path) -> None:
    DiffMAViL(tiny()).save_pretrained(tmp_path)
    student = DiffMAViL(tiny(objective="features"))
    cfg = TrainConfig(model=student.cfg, stage2=Stage2Config(teacher=str(tmp_path)))
    teacher = load_teacher(cfg)
    theirs = teacher.model.video_encoder.patch_embed.weight
    assert not torch.equal(student.video_encoder.patch_embed.weight, theirs)
    copy_start(teacher, student)
    assert torch.equal(student.video_encoder.patch_embed.weight, theirs)
    with pytest.raises(UsageError, match="start-from scratch"):
        copy_start(teacher, DiffMAViL(tiny(objective="features", audio={"depth": 3})))


def test_a_run_without_its_teacher_is_an_error(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, tmp_path / "run", model={"objective": "features"})
    with pytest.raises(UsageError, match=r"--stage2\.teacher"):
        train(cfg)
    with pytest.raises(UserError, match=r"there is no .*absent"):
        train(dataclasses.replace(cfg, stage2=Stage2Config(teacher=str(tmp_path / "absent"))))


@pytest.fixture(scope="module")
def clips(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> AVBatch:
    """The synthetic scenes as a batch of the tiny model."""
    out = tmp_path_factory.mktemp("shards") / "scenes"
    run_verb("shards", [str(scenes), str(out), "--workers", "1"])
    clips = ClipSet((str(out),), "all")
    mean, std = clips.log_mel
    source = dataclasses.replace(tiny().input, audio_mean=mean, audio_std=std, video_fps=4.0)
    raw = next(iter(eval_loader(clips, source, range(len(clips)), len(clips))))
    return Features(source)(raw)


def part(batch: AVBatch, rows: slice, seed: int = 0) -> AVBatch:
    fields = {name: value[rows] for name, value in vars(batch).items()}
    return AVBatch(**{**fields, "seed_B": fields["seed_B"] + 1000 * seed})


@pytest.mark.slow
def test_student_beats_the_mean_teacher_feature(teacher: Teacher, clips: AVBatch) -> None:
    """On synthetic scenes it did not train on, its error falls below that of the best constant prediction."""
    torch.manual_seed(0)
    student = DiffMAViL(tiny(source="mask_token", objective="features", views=1, loss={"intra": 0.0, "inter": 0.0}))
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    trained, held_out = slice(0, 18), slice(18, 24)
    for step in range(120):
        batch = part(clips, trained, step)
        optimizer.zero_grad()
        student(batch, MaskRatios(0.75, 0.75), teacher(batch))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    batch = part(clips, held_out)
    features = teacher(batch)
    losses = student(batch, MaskRatios(0.75, 0.75), features)
    for name, tokens in (("audio", features.audio_BLD), ("video", features.video_BLD)):
        target = normalise_patches(tokens)
        constant = (target - target.mean(dim=(0, 1))).square().mean()
        assert losses[f"reconstruction_{name}"] < constant
