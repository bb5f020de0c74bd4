"""The whole model: shapes, options, saving, precision, and that it learns."""

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from avpretrain.config.model import FusionConfig
from avpretrain.methods.diffmavil.config import LossConfig
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import DiffMAViL
from tests.support.tiny_models import random_batch, smooth_batch, tiny

KINDS = ("joint", "cross_self", "cross")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("source", ["mask_token", "diffused"])
@pytest.mark.parametrize("kind", KINDS)
def test_decoder_kinds_agree_on_shapes(kind: str, source: str) -> None:
    model = DiffMAViL(tiny(kind, source))
    batch = random_batch(model.cfg)
    views = model.encode_masked(batch, 0.75, 0.5)
    assert views["audio"].context_BCD.shape == (4, 1 + 4, 48)
    assert views["video"].context_BCD.shape == (4, 1 + 16, 48)
    for side, hidden, values in (("audio", 12, 16 * 8), ("video", 16, 2 * 8 * 8 * 3)):
        out = model.tower(side).denoise(views[side], batch.seed_B, 0)
        assert out.prediction_BNQ.shape == out.target_BNQ.shape == (4, hidden, values)
    picture = model.reconstruct(batch, 0.75, 0.5)
    assert picture.audio_BFM.shape == picture.audio_mask_BFM.shape == batch.audio_BFM.shape
    assert picture.video_BTCHW.shape == picture.video_mask_BTCHW.shape == batch.video_BTCHW.shape


OPTIONS = {
    "one view": {"views": 1, "loss": {"intra": 0.0}},
    "both views decoded": {"decode_views": 2},
    "no class token": {"cls_token": False},
    "bottleneck": {"fusion": FusionConfig(kind="bottleneck")},
    "no fusion": {"fusion": FusionConfig(depth=0)},
    "part decoded": {"decoder": {"decode_ratio": 0.5}},
    "windows": {"kind": "joint", "audio": {}, "decoder": {"window": (2, 2)}},
    "structured masks": {"audio": {"mask": "time_frequency"}, "video": {"mask": "tube"}},
    "learned positions": {"audio": {"positions": "learned"}, "video": {"positions": "learned"}},
    "epsilon": {"diffusion": {"prediction_type": "epsilon"}},
    "velocity, adaLN, min-SNR": {
        "diffusion": {"prediction_type": "v_prediction", "time_conditioning": "adaln", "loss_weighting": "min_snr"}
    },
    "noise on pixels": {"diffusion": {"noise_on": "pixel"}},
    "raw pixels": {"loss": {"norm_pix_loss": False}},
    "cosine, zero terminal SNR": {"diffusion": {"beta_schedule": "squaredcos_cap_v2", "zero_terminal_snr": True}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_every_parameter(name: str) -> None:
    model = DiffMAViL(tiny(**OPTIONS[name]))
    batch = random_batch(model.cfg)
    for key, parameter in model.named_parameters():
        if ".modulation." in key:  # adaLN's gates start closed: nothing behind them would learn yet
            torch.nn.init.normal_(parameter, std=0.1)
    losses = model(batch, MaskRatios(0.75, 0.75))
    losses["loss"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    weights = {"reconstruction": 1.0, "inter": 0.1, "intra": model.cfg.loss.intra}
    total = sum(weights[key.split("_")[0]] * value for key, value in losses.items() if key != "loss")
    torch.testing.assert_close(losses["loss"], total)
    untrained = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untrained == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_losses_do_not_depend_on_who_else_is_in_the_batch() -> None:
    model = DiffMAViL(tiny(loss={"inter": 0.0, "intra": 0.0}))
    batch = random_batch(model.cfg)
    halves = [
        dataclasses.replace(batch, **{f.name: getattr(batch, f.name)[part] for f in dataclasses.fields(batch)})
        for part in (slice(0, 2), slice(2, 4))
    ]
    apart = sum(model(half, MaskRatios(0.75, 0.75))["loss"] for half in halves) / 2
    torch.testing.assert_close(model(batch, MaskRatios(0.75, 0.75))["loss"], apart)


def test_a_missing_modality_counts_for_nothing() -> None:
    model = DiffMAViL(tiny())
    batch = random_batch(model.cfg)
    mute = dataclasses.replace(batch, has_audio_B=torch.tensor([True, True, True, False]))
    filler = dataclasses.replace(mute, audio_BFM=torch.cat([batch.audio_BFM[:3], 9 + torch.zeros(1, 64, 32)]))
    one, other = model(mute, MaskRatios(0.75, 0.75)), model(filler, MaskRatios(0.75, 0.75))
    for name in ("inter", "intra_audio", "intra_video", "reconstruction_audio"):
        torch.testing.assert_close(one[name], other[name])


def test_forgotten_parameters_would_show() -> None:
    """All parameters are filled with NaN first: initialisation must reach each."""
    for options in (
        {},
        {"source": "mask_token", "fusion": FusionConfig(kind="bottleneck")},
        OPTIONS["learned positions"],
    ):
        model = DiffMAViL(tiny(diffusion={"time_conditioning": "adaln"}, **options))
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, float("nan"))
        model.reset_parameters()
        assert all(p.isfinite().all() for p in model.parameters())
        assert model(random_batch(model.cfg), MaskRatios(0.75, 0.75))["loss"].isfinite()


def test_saved_and_loaded_it_is_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = DiffMAViL(tiny(audio={"positions": "learned"})).eval()
    model.save_pretrained(tmp_path)
    loaded = DiffMAViL.from_pretrained(tmp_path)
    batch = random_batch(model.cfg)
    assert loaded.cfg == model.cfg
    assert torch.equal(loaded(batch, MaskRatios(0.8, 0.8))["loss"], model(batch, MaskRatios(0.8, 0.8))["loss"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert "16000 Hz, 64 frames" in (tmp_path / "README.md").read_text()
    assert capfd.readouterr().out == ""  # answers in JSON go to stdout


@pytest.mark.parametrize("learned", ["fixed", "learned"])
def test_encoders_take_other_lengths_and_sizes(learned: str) -> None:
    model = DiffMAViL(tiny(audio={"positions": learned}, video={"positions": learned}))
    for frames in (16, 64, 160):
        assert model.encode_audio(torch.randn(2, frames, 32)).shape == (2, 1 + frames // 16 * 4, 48)
    for frames, size in ((2, 16), (4, 32), (8, 48)):
        tokens = model.encode_video(torch.randn(2, frames, 3, size, size))
        assert tokens.shape == (2, 1 + frames // 2 * (size // 8) ** 2, 48)


def test_reconstruction_of_raw_patches_is_the_decoders_word() -> None:
    model = DiffMAViL(tiny(source="mask_token", loss={"norm_pix_loss": False}))
    batch = random_batch(model.cfg)
    picture = model.reconstruct(batch, 0.75, 0.75)
    mask = model.tower("audio").masks(batch.seed_B, 0.75, 2)[0].mask_BL.reshape(4, 4, 4)
    expected = mask.repeat_interleave(16, dim=1).repeat_interleave(8, dim=2)
    assert torch.equal(picture.audio_mask_BFM, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "precision"), [("mask_token", "fp32"), ("diffused", "fp32"), ("diffused", "bf16")])
@pytest.mark.parametrize("kind", KINDS)
def test_overfits_one_batch(kind: str, source: str, precision: str) -> None:
    """Reconstruction of one batch, its masks and its noise fixed, falls below 5% of the target's variance."""
    model = DiffMAViL(tiny(kind, source, loss={"inter": 0.0, "intra": 0.0}, views=1))
    batch = smooth_batch(model.cfg, clips=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20)
        with autocast:
            losses = model(batch, MaskRatios(0.75, 0.75))
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if max(losses["reconstruction_audio"], losses["reconstruction_video"]) < 0.05:
            return
    pytest.fail(f"after 400 steps: {losses}")


COMPILED = """
import torch
from tests.support.tiny_models import random_batch, tiny
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import DiffMAViL

shallow = {"depth": 1}
plain = {"time_conditioning": "adaln", "loss_weighting": "min_snr"}
design = {"timesteps": "logit_normal", "noise_level": "patch", "mask_share": 0.5, "prediction_type": "edm",
          "input_scale": "signal", "loss_weighting": "noise", "video_shift": 4.0}
for diffusion, decoder in ((plain, shallow), (design, {"depth": 2, "levels": (0, 1)})):
    cfg = tiny("cross_self", decoder=decoder, diffusion=diffusion, audio={**shallow, "mask": "time"}, video=shallow)
    model, batch = DiffMAViL(cfg), random_batch(cfg)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for ratios in (MaskRatios(0.9, 0.9), MaskRatios(0.8, 0.8)):
        assert torch.equal(compiled(batch, ratios)["loss"], model(batch, ratios)["loss"])
"""


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    """In a process of its own: run-time type checks, which tests switch on, can't be traced."""
    subprocess.run([sys.executable, "-c", COMPILED], cwd=Path(__file__).parents[3], check=True)


def test_contradictory_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="needs views 2"):
        tiny(views=1)
    with pytest.raises(ValueError, match="prediction_type 'sample'"):
        tiny(diffusion={"noise_on": "pixel", "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="window"):
        tiny(kind="joint", decoder={"window": (3, 2)})
    assert LossConfig(norm_pix_loss=False) == tiny(loss={"norm_pix_loss": False}).loss
