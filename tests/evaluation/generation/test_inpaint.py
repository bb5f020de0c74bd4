"""Inpainting: the chain, its statistics, its files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from avpretrain.cli.main import run as run_verb
from avpretrain.config.model import InputConfig
from avpretrain.core.errors import UsageError
from avpretrain.data.features import centred, log_mel
from avpretrain.evaluation.generation.filling import InpaintConfig, inpaint, neighbour_stats
from avpretrain.evaluation.generation.vocoder import to_waveform
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.nn.losses import PatchStats
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import random_batch, smooth_batch, tiny


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


QUICK = {"audio_ratio": 0.75, "video_ratio": 0.75, "steps": 4}


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "edm"])
@pytest.mark.parametrize("design", [{}, {"audio_shift": 4.0, "mask_share": 0.5, "noise_level": "patch"}])
def test_an_oracle_is_sampled_to_the_truth(sampler: str, prediction: str, design: dict[str, Any]) -> None:
    """A decoder that always knows the clean patch leaves no error after the whole chain."""
    model = DiffMAViL(
        tiny(
            loss={"norm_pix_loss": False},
            diffusion={"prediction_type": prediction, "num_train_timesteps": 50, **design},
        )
    )
    batch = random_batch(model.cfg)
    view = model.encode_masked(batch, 0.75, 0.75)["audio"]
    truth = view.patches_BLP.gather(1, view.mask.ids_hidden_BN[:, :, None].expand(-1, -1, 128))

    def oracle(context: Tensor, keep: Tensor, hidden: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        if prediction == "sample":
            return truth
        a = model.tower("audio").process.alphas_cumprod_T[timestep].reshape(len(timestep), -1, 1)
        noise = (noisy - a.sqrt() * truth) / (1 - a).sqrt()
        velocity = a.sqrt() * noise - (1 - a).sqrt() * truth
        return velocity if prediction == "v_prediction" else -velocity

    model.tower("audio").decoder.forward = oracle
    filled = inpaint(model, batch, InpaintConfig(audio_ratio=0.75, video_ratio=0.75, steps=50, sampler=sampler))
    assert filled.errors["audio"]["sampled"].max() < 1e-3
    assert filled.errors["audio"]["mean_fill"].min() > 0.5


@pytest.mark.parametrize("source", ["diffused", "mask_token"])
@pytest.mark.parametrize("noise_on", ["target", "pixel"])
def test_methods_and_shapes(source: str, noise_on: str) -> None:
    model = DiffMAViL(tiny(source=source, diffusion={"noise_on": noise_on}))
    batch = random_batch(model.cfg)
    filled = inpaint(model, batch, InpaintConfig(**QUICK))
    expected = {"mean_fill", "neighbour_fill", "one_step"} | ({"sampled"} if source == "diffused" else set())
    for side, whole in (("audio", batch.audio_BFM), ("video", batch.video_BTCHW)):
        assert set(filled.pictures[side]) == expected
        for name, picture in filled.pictures[side].items():
            assert picture.shape == whole.shape
            assert torch.equal(picture[filled.masks[side] == 0], whole[filled.masks[side] == 0])
            error = (picture - whole).square().sum() / filled.masks[side].sum()
            torch.testing.assert_close(filled.errors[side][name].mean(), error)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_clips_filling_depends_on_its_seed_alone(sampler: str) -> None:
    model = DiffMAViL(tiny())
    batch = random_batch(model.cfg)
    alone = random_batch(model.cfg)
    cfg = InpaintConfig(**QUICK, sampler=sampler)
    fields = {name: getattr(alone, name)[2:3] for name in vars(alone)}
    one = inpaint(model, type(alone)(**fields), cfg).pictures["video"]["sampled"]
    torch.testing.assert_close(inpaint(model, batch, cfg).pictures["video"]["sampled"][2:3], one, atol=1e-4, rtol=0)


@pytest.mark.parametrize("statistics", ["neighbours", "own"])
def test_hidden_statistics_enter_only_when_asked(statistics: str) -> None:
    model = DiffMAViL(tiny())
    batch = random_batch(model.cfg)
    first = inpaint(model, batch, InpaintConfig(**QUICK, statistics=statistics))
    hidden = first.masks["audio"]
    louder = type(batch)(**{**vars(batch), "audio_BFM": batch.audio_BFM * (1 + hidden) + hidden})
    second = inpaint(model, louder, InpaintConfig(**QUICK, statistics=statistics))
    same = torch.equal(first.pictures["audio"]["sampled"], second.pictures["audio"]["sampled"])
    assert same == (statistics == "neighbours")


def test_neighbour_statistics_by_hand() -> None:
    visible_BKP = torch.tensor([[[0.0, 2.0], [10.0, 14.0]]])  # means 1 and 12, variances 2 and 8
    stats = neighbour_stats(visible_BKP, torch.tensor([[0, 3]]), torch.tensor([[1, 2]]), (1, 4))
    torch.testing.assert_close(stats.mean_BN1[0, :, 0], torch.tensor([(1 * 4 + 12) / 5, (1 + 12 * 4) / 5]))
    torch.testing.assert_close(stats.var_BN1[0, :, 0], torch.tensor([(2 * 4 + 8) / 5, (2 + 8 * 4) / 5]))


@pytest.mark.slow
def test_a_trained_model_fills_better_than_the_mean() -> None:
    """Sounds it knows, under masks and noise that it does not."""
    model = DiffMAViL(tiny("cross_self", views=1, loss={"norm_pix_loss": False, "intra": 0.0, "inter": 0.0}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = smooth_batch(model.cfg, 4)
    for step in range(300):
        optimizer.zero_grad()
        model(dataclasses.replace(batch, seed_B=batch.seed_B + 100 * step), MaskRatios(0.75, 0.75))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    fresh = dataclasses.replace(batch, seed_B=batch.seed_B - 100)
    errors = inpaint(model, fresh, InpaintConfig(**{**QUICK, "steps": 10})).errors["audio"]
    assert errors["one_step"].mean() < 0.7 * errors["mean_fill"].mean()
    assert errors["sampled"].mean() < 0.8 * errors["mean_fill"].mean()  # samples stray from the mean of what may be


def test_a_feature_model_or_too_many_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="predicts no patches"):
        model = DiffMAViL(tiny(objective="features"))
        inpaint(model, random_batch(model.cfg), InpaintConfig())
    with pytest.raises(UsageError, match="exceed"):
        model = DiffMAViL(tiny())
        inpaint(model, random_batch(model.cfg), InpaintConfig(steps=2000))


def test_sound_survives_the_way_to_log_mel_and_back() -> None:
    """A gliding tone with harmonics: the rebuilt sound has nearly the same log-mel where there is energy."""
    cfg = InputConfig(audio_mean=-8.0, audio_std=4.0)
    t = torch.arange(16_000) / 16_000
    wave = sum(0.2 / h * torch.sin(2 * torch.pi * h * (300 * t + 150 * t**2)) for h in (1, 2, 3))
    wave = centred((wave * 32767).to(torch.int16)[None], torch.tensor([16_000]))
    original = log_mel(wave)[0]
    rebuilt = log_mel(to_waveform((original + 8) / 8, cfg)[None])[0]
    frames = min(len(original), len(rebuilt))
    original, rebuilt = original[4 : frames - 4], rebuilt[4 : frames - 4]
    loud = original > original.quantile(0.7)
    assert (original - rebuilt)[loud].abs().mean() < 0.7  # nepers of power: 3 dB
    assert PatchStats.of(rebuilt[None]).mean_BN1.isfinite().all()


def test_command_writes_pictures_sounds_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = [Spec(split="test") for _ in range(3)] + [
        Spec(split="test", sound=False),
        Spec(split="test", picture=False),
    ]
    data = make_dataset(tmp_path / "data", specs)
    DiffMAViL(tiny()).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "model"), str(data), "--out", str(out), "--steps", "3", "--shown", "5"]
    run_verb("inpaint", [*arguments, "--num-workers", "0", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((out / "errors.json").read_text())
    assert result["clips"] == 5
    assert result["settings"]["statistics"] == "neighbours"
    for side in ("audio", "video"):
        assert set(result["mse"][side]) == {"mean_fill", "neighbour_fill", "one_step", "sampled"}
        low, high = result["mse"][side]["sampled"]["ci"]
        assert low <= result["mse"][side]["sampled"]["value"] <= high
    names = {path.name for path in out.iterdir()}
    assert {"clip00000-audio.png", "clip00000-video.png", "clip00000-original.wav", "clip00000-filled.wav"} <= names
    assert "clip00003-audio.png" not in names
    assert "clip00004-video.png" not in names
    sound, rate = soundfile.read(out / "clip00000-filled.wav")
    assert rate == 16_000
    assert np.abs(sound).max() > 0


def test_command_says_what_is_wrong(tmp_path: Path) -> None:
    DiffMAViL(tiny()).save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="--out"):
        run_verb("inpaint", [str(tmp_path / "model"), str(tmp_path)])
    with pytest.raises(UsageError, match="audio-ratio"):
        run_verb("inpaint", [str(tmp_path / "model"), str(tmp_path), "--audio-ratio", "1.5"])
