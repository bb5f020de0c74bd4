"""Foreign checkpoints, written here in each layout, against independent forward passes of those layouts."""

import argparse
import json
import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from avpretrain.cli.main import run as run_verb
from avpretrain.config.model import InputConfig
from avpretrain.core.errors import UsageError, UserError
from avpretrain.methods.diffmavil.conversions.foreign import AUDIOSET_STATS, CAV_MAE_STATS, read_weights
from avpretrain.methods.diffmavil.conversions.importers import import_checkpoint
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model
from avpretrain.nn.patches import positions
from tests.support.tiny_models import tiny

D, HEADS, LAYERS = 48, 4, 2
INPUT = InputConfig(audio_frames=64, mels=128, video_frames=4, video_size=32)
BASE = tiny(input=INPUT, audio={"patch": (16, 16)}, video={"patch": (2, 16, 16)})
TOLERANCE = {"atol": 1e-5, "rtol": 0}
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- checkpoints of random weights -----------------------------------------------------------------------------------


def block(prefix: str, norms: tuple[str, ...] = ("norm1", "norm2")) -> Weights:
    shapes = {"attn.qkv": (3 * D, D), "attn.proj": (D, D), "mlp.fc1": (4 * D, D), "mlp.fc2": (D, 4 * D)}
    weights = {f"{prefix}{name}.weight": torch.randn(shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
    weights |= {f"{prefix}{name}.bias": torch.randn(shape[0]) / 10 for name, shape in shapes.items()}
    return weights | {k: v for name in norms for k, v in norm(f"{prefix}{name}.").items()}


def norm(prefix: str) -> Weights:
    return {f"{prefix}weight": 1 + torch.randn(D) / 10, f"{prefix}bias": torch.randn(D) / 10}


def patch_embed(prefix: str, *kernel: int) -> Weights:
    scale = math.prod(kernel) ** 0.5
    return {f"{prefix}.proj.weight": torch.randn(D, *kernel) / scale, f"{prefix}.proj.bias": torch.randn(D) / 10}


def vit(suffix: str, blocks: str, count: int, *kernel: int) -> Weights:
    weights = patch_embed(f"patch_embed{suffix}", *kernel)
    weights[f"cls_token{suffix}"] = torch.randn(1, 1, D)
    weights[f"pos_embed{suffix}"] = torch.randn(1, 1 + count, D)
    for i in range(LAYERS):
        weights |= block(f"{blocks}.{i}.")
    return weights


def mae(patches: int = 4) -> Weights:
    decoder = {"decoder_embed.weight": torch.randn(32, D), "mask_token": torch.randn(1, 1, 32)}
    return vit("", "blocks", patches, 3, 16, 16) | norm("norm.") | decoder


def audiomae() -> Weights:
    return vit("", "blocks", 4 * 8, 1, 16, 16) | norm("norm.")


def mavil() -> Weights:
    """The released layout: no norm after the encoders, none after the fusion."""
    weights = vit("", "blocks", 4 * 8, 1, 16, 16) | vit("_v", "blocks_v", 2 * 2 * 2, 3, 2, 16, 16)
    return weights | block("blocks_av.0.") | block("blocks_av.1.")


def cav_mae() -> Weights:
    names = ("norm1", "norm1_a", "norm1_v", "norm2", "norm2_a", "norm2_v")
    weights = patch_embed("patch_embed_a", 1, 16, 16) | patch_embed("patch_embed_v", 3, 16, 16)
    weights |= {f"modality_{s}": torch.randn(1, 1, D) for s in "av"}
    weights |= {"pos_embed_a": torch.randn(1, 8 * 4, D), "pos_embed_v": torch.randn(1, 4, D)}
    for i in range(LAYERS):
        weights |= block(f"blocks_a.{i}.", names) | block(f"blocks_v.{i}.", names)
    weights |= block("blocks_u.0.", names) | norm("norm_a.") | norm("norm_v.") | norm("norm.")
    return {f"module.{key}": value for key, value in weights.items()}


# --- their forward passes, in plain torch ----------------------------------------------------------------------------


def run_norm(x: Tensor, w: Weights, prefix: str, eps: float) -> Tensor:
    return F.layer_norm(x, (D,), w[f"{prefix}.weight"], w[f"{prefix}.bias"], eps)


def run_block(x: Tensor, w: Weights, p: str, which: str = "", eps: float = 1e-6) -> Tensor:
    y = F.linear(run_norm(x, w, f"{p}norm1{which}", eps), w[f"{p}attn.qkv.weight"], w[f"{p}attn.qkv.bias"])
    batch, length, _ = x.shape
    q, k, v = y.reshape(batch, length, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) / (D // HEADS) ** 0.5).softmax(dim=-1)
    y = (attention @ v).transpose(1, 2).reshape(batch, length, D)
    x = x + F.linear(y, w[f"{p}attn.proj.weight"], w[f"{p}attn.proj.bias"])
    y = F.gelu(F.linear(run_norm(x, w, f"{p}norm2{which}", eps), w[f"{p}mlp.fc1.weight"], w[f"{p}mlp.fc1.bias"]))
    return x + F.linear(y, w[f"{p}mlp.fc2.weight"], w[f"{p}mlp.fc2.bias"])


def run_vit(x: Tensor, w: Weights, suffix: str = "", blocks: str = "blocks", last: str = "norm") -> Tensor:
    """Class token and patches, each plus its position; blocks; norm, where there is one."""
    conv = F.conv3d if x.ndim == 5 else F.conv2d
    kernel = w[f"patch_embed{suffix}.proj.weight"]
    x = conv(x, kernel, w[f"patch_embed{suffix}.proj.bias"], stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    x = torch.cat([w[f"cls_token{suffix}"].expand(len(x), -1, -1), x], dim=1) + w[f"pos_embed{suffix}"]
    for i in range(LAYERS):
        x = run_block(x, w, f"{blocks}.{i}.")
    return run_norm(x, w, last, 1e-6) if last else x


def run_cav_mae(x: Tensor, w: Weights, side: str) -> Tensor:
    """Audio comes as (frequency, time); own blocks, shared block under this side's norms, this side's last norm."""
    w = {key.removeprefix("module."): value for key, value in w.items()}
    kernel = w[f"patch_embed_{side}.proj.weight"]
    x = F.conv2d(x, kernel, w[f"patch_embed_{side}.proj.bias"], stride=16).flatten(2).transpose(1, 2)
    x = x + w[f"pos_embed_{side}"] + w[f"modality_{side}"]
    for i in range(LAYERS):
        x = run_block(x, w, f"blocks_{side}.{i}.", eps=1e-5)
    return run_norm(run_block(x, w, "blocks_u.0.", f"_{side}", 1e-5), w, f"norm_{side}", 1e-5)


# --- tests -----------------------------------------------------------------------------------------------------------


def saved(folder: Path, weights: object, name: str = "foreign.pth") -> Path:
    torch.save(weights, folder / name)
    return folder / name


def still(image: Tensor) -> Tensor:
    """[B, 3, H, W] as a video of four equal frames, [B, T, 3, H, W]."""
    return image[:, None].expand(-1, 4, -1, -1, -1)


def test_mae_into_video(tmp_path: Path) -> None:
    """On a still clip every tubelet is MAE's patch, so all times agree and attention is that over one image."""
    weights = mae()
    model, report = import_checkpoint(
        saved(tmp_path, {"model": weights, "args": argparse.Namespace(lr=1)}), "mae", BASE, "video", heads=HEADS
    )
    image = torch.randn(2, 3, 32, 32)
    expected = run_vit(image, weights)
    one_time = model.encode_video(still(image)[:, :2])
    torch.testing.assert_close(one_time, expected, **TOLERANCE)
    assert report.missing == []
    assert report.unused == ["decoder_embed.weight", "mask_token"]
    assert set(report.loaded) == {"video_encoder"}
    assert any("inflated" in line for line in report.adapted)


def test_mae_into_audio_sums_colours(tmp_path: Path) -> None:
    """Four by four patches on both sides, so that positions need no interpolation."""
    base = tiny(input=InputConfig(audio_frames=64, mels=64, video_frames=4, video_size=32), audio={"patch": (16, 16)})
    weights = mae(patches=16)
    model, report = import_checkpoint(saved(tmp_path, weights), "mae", base, "audio", heads=HEADS)
    audio = torch.randn(2, 64, 64)
    expected = run_vit(audio[:, None].expand(-1, 3, -1, -1), weights)
    torch.testing.assert_close(model.encode_audio(audio), expected, **TOLERANCE)
    assert any("summed" in line for line in report.adapted)


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_timm_model_with_its_own_forward(tmp_path: Path, layer_scale: float | None) -> None:
    timm = pytest.importorskip("timm", reason="held to timm's own model: pip install timm")
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=D, depth=LAYERS, num_heads=HEADS, num_classes=5, init_values=layer_scale
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) / 20)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    model, report = import_checkpoint(tmp_path / "vit.safetensors", "timm", BASE, "video", heads=HEADS)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.forward_features(image)
        torch.testing.assert_close(model.encode_video(still(image)[:, :2]), expected, **TOLERANCE)
    assert report.unused == ["head.bias", "head.weight"]


def test_audiomae(tmp_path: Path) -> None:
    weights = audiomae()
    model, report = import_checkpoint(saved(tmp_path, {"model": weights}), "audiomae", BASE, heads=HEADS)
    audio = torch.randn(2, 64, 128)
    torch.testing.assert_close(model.encode_audio(audio), run_vit(audio[:, None], weights), **TOLERANCE)
    assert (model.cfg.input.audio_mean, model.cfg.input.audio_std) == AUDIOSET_STATS
    assert report.unused == report.missing == []


def dasheng(bands: int = 16, steps: int = 20) -> Weights:
    """Patches of 4 frames by all mel bins, a batch norm before them, positions of time and of the one band."""
    weights = {**patch_embed("patch_embed", 1, bands, 4), **norm("norm.")}
    weights |= {"time_pos_embed": torch.randn(1, D, 1, steps), "freq_pos_embed": torch.randn(1, D, 1, 1)}
    weights |= {f"init_bn.1.{name}": torch.randn(bands) for name in ("weight", "bias", "running_mean")}
    weights |= {"init_bn.1.running_var": torch.rand(bands) + 0.5, "front_end.0.mel_scale.fb": torch.zeros(257, bands)}
    for i in range(LAYERS):
        weights |= block(f"blocks.{i}.")
    return weights


def run_dasheng(x: Tensor, w: Weights) -> Tensor:
    """[B, L, D] of spectrograms [B, F, M]."""
    mean, variance = (w[f"init_bn.1.running_{name}"] for name in ("mean", "var"))
    x = F.batch_norm(x.transpose(1, 2), mean, variance, w["init_bn.1.weight"], w["init_bn.1.bias"])
    x = F.conv2d(x[:, None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=(x.shape[1], 4))
    x = (x + w["time_pos_embed"][..., : x.shape[3]] + w["freq_pos_embed"])[:, :, 0].transpose(1, 2)
    for i in range(LAYERS):
        x = run_block(x, w, f"blocks.{i}.")
    return run_norm(x, w, "norm", 1e-6)


def test_dasheng(tmp_path: Path) -> None:
    weights = dasheng()
    path = saved(tmp_path, {"model": weights, "config": {"embed_dim": D}})
    model, report = import_checkpoint(path, "dasheng", BASE, heads=HEADS)
    for frames in (64, 40):  # clips of the config's length, and shorter ones: positions are cut
        audio = 10 * torch.randn(2, frames, 16)
        close = {"atol": 1e-4, "rtol": 0}  # decibels: values of 10
        torch.testing.assert_close(model.encode_audio(audio), run_dasheng(audio, weights), **close)
    assert (model.cfg.input.mels, model.cfg.audio.patch) == (16, (4, 16))
    energy = torch.tensor([0.1, 100.0])
    decibels = (energy.log() - model.cfg.input.audio_mean) / (2 * model.cfg.input.audio_std)
    torch.testing.assert_close(decibels, torch.tensor([-10.0, 20.0]))
    assert report.missing == report.unused == []
    assert any("what it hears is not" in line for line in report.warnings)


def test_dasheng_against_its_package(tmp_path: Path) -> None:
    package = pytest.importorskip("dasheng.pretrained.pretrained", reason="the package dasheng is not installed")
    theirs = package.Dasheng(embed_dim=D, depth=LAYERS, num_heads=HEADS, target_length=80).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            value.add_(torch.randn_like(value) / 20 if "init_bn" not in name else torch.rand_like(value) / 2)
        theirs.init_bn[1].running_mean.uniform_(-1, 1)
        theirs.init_bn[1].running_var.uniform_(0.5, 2)
        path = saved(tmp_path, {"model": theirs.state_dict(), "config": {}})
        model, report = import_checkpoint(path, "dasheng", BASE, heads=HEADS)
        audio = torch.randn(2, 64, 64)
        expected = theirs.forward_spectrogram(theirs.init_bn(audio.transpose(1, 2)[:, None]))
        torch.testing.assert_close(model.encode_audio(audio), expected, **TOLERANCE)
    assert report.missing == report.unused == []


def test_mavil_end_to_end_through_fusion(tmp_path: Path) -> None:
    """Encoders and fused tokens against a plain forward of the released layout, in which no norm stands in between."""
    weights = mavil()
    model, report = import_checkpoint(saved(tmp_path, weights), "mavil", BASE, heads=HEADS)
    audio, video = torch.randn(2, 64, 128), torch.randn(2, 4, 3, 32, 32)
    heard = run_vit(audio[:, None], weights, last="")
    seen = run_vit(video.transpose(1, 2), weights, "_v", "blocks_v", last="")
    torch.testing.assert_close(model.encode_audio(audio), heard, **TOLERANCE)
    torch.testing.assert_close(model.encode_video(video), seen, **TOLERANCE)
    both = torch.cat([heard, seen], dim=1)  # class token, audio, class token, video
    for i in range(2):
        both = run_block(both, weights, f"blocks_av.{i}.")
    fused = torch.cat(model.fusion(model.encode_audio(audio), model.encode_video(video)), dim=1)
    torch.testing.assert_close(fused, both, atol=1e-4, rtol=0)
    assert model.cfg.fusion.depth == 2
    assert not model.cfg.encoder_norm
    assert not model.cfg.fusion.norm
    assert report.missing == report.unused == []


def test_mavil_with_norms_keeps_them(tmp_path: Path) -> None:
    """Checkpoints from before the norms were deleted, such as a pretraining's, may hold them."""
    weights = mavil() | norm("norm.") | norm("norm_v.")
    model, report = import_checkpoint(saved(tmp_path, weights), "mavil", BASE, heads=HEADS)
    audio = torch.randn(2, 64, 128)
    torch.testing.assert_close(model.encode_audio(audio), run_vit(audio[:, None], weights), **TOLERANCE)
    assert model.cfg.encoder_norm
    assert report.missing == ["fusion.norm.weight", "fusion.norm.bias"]


def test_cav_mae(tmp_path: Path) -> None:
    weights = cav_mae()
    model, report = import_checkpoint(saved(tmp_path, weights), "cav-mae", BASE, heads=HEADS)
    audio, image = torch.randn(2, 64, 128), torch.randn(2, 3, 32, 32)
    close = {"atol": 1e-4, "rtol": 0}  # epsilon 1e-5 there, 1e-6 here
    expected = run_cav_mae(audio[:, None].transpose(2, 3), weights, "a")  # frequency before time
    ours = model.encode_audio(audio)
    torch.testing.assert_close(ours, expected.unflatten(1, (8, 4)).transpose(1, 2).flatten(1, 2), **close)
    torch.testing.assert_close(model.encode_video(still(image)[:, :2]), run_cav_mae(image, weights, "v"), **close)
    assert model.cfg.audio.depth == LAYERS + 1
    assert not model.cfg.cls_token
    assert (model.cfg.input.audio_mean, model.cfg.input.audio_std) == CAV_MAE_STATS
    assert report.missing == []


def test_fixed_positions_are_recognised(tmp_path: Path) -> None:
    weights = audiomae()
    weights["pos_embed"] = torch.cat([torch.zeros(1, D), positions((4, 8), D, (4, 8))])[None]
    model, _ = import_checkpoint(saved(tmp_path, weights), "audiomae", BASE, heads=HEADS)
    assert model.cfg.audio.positions == "fixed"
    audio = torch.randn(1, 64, 128)
    torch.testing.assert_close(model.encode_audio(audio), run_vit(audio[:, None], weights), atol=1e-4, rtol=0)


def test_positions_follow_another_input_size(tmp_path: Path) -> None:
    """An image ViT of 2 x 2 patches into a video of 4 x 4: corners of the table pull towards the old corners."""
    base = tiny(input=InputConfig(audio_frames=64, mels=128, video_frames=4, video_size=64), audio={"patch": (16, 16)})
    weights = mae()
    model, report = import_checkpoint(saved(tmp_path, weights), "mae", base, "video", heads=HEADS)
    table = model.video_encoder.position_table.reshape(2, 4, 4, D)
    torch.testing.assert_close(table[0], table[1])
    old = weights["pos_embed"][0, 1:].reshape(2, 2, D)
    torch.testing.assert_close(table[0, 0, 0], old[0, 0])
    torch.testing.assert_close(table[0, 3, 0], old[1, 0])
    torch.testing.assert_close(table[0, 0, 1], 0.75 * old[0, 0] + 0.25 * old[0, 1])
    assert any("from 4 positions" in line for line in report.adapted)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hacked",)


def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, {"model": mae(), "extra": Attack()})
    with pytest.raises(UserError, match="could run code") as error:
        read_weights(path)
    assert "system" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hacked").exists()


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path, audiomae())
    with pytest.raises(UserError, match="is --format right"):
        import_checkpoint(path, "cav-mae", BASE, heads=HEADS)
    with pytest.raises(UsageError, match="--heads"):
        import_checkpoint(path, "audiomae", BASE)
    with pytest.raises(UsageError, match="no video encoder"):
        import_checkpoint(path, "audiomae", BASE, "video", heads=HEADS)
    with pytest.raises(UserError, match="no place for"):
        import_checkpoint(
            saved(tmp_path, {**mae(), "blocks.0.attn.q_norm.weight": torch.ones(D)}), "mae", BASE, heads=HEADS
        )
    with pytest.raises(UserError, match="register tokens"):
        import_checkpoint(saved(tmp_path, {**mae(), "reg_token": torch.ones(1, 4, D)}), "timm", BASE, heads=HEADS)
    wrong = {**dasheng(), "freq_pos_embed": torch.zeros(1, D, 3, 1)}
    with pytest.raises(UserError, match="do not span its 16 mel bins"):
        import_checkpoint(saved(tmp_path, wrong), "dasheng", BASE, heads=HEADS)
    with pytest.raises(UserError, match="no checkpoint"):
        read_weights(tmp_path / "absent.pth")
    (tmp_path / "torn.pth").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_weights(tmp_path / "torn.pth")
    (tmp_path / "torn.safetensors").write_bytes(b"0123456789")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_weights(tmp_path / "torn.safetensors")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("model:\n  input: {audio_frames: 64, video_frames: 4, video_size: 32}\n")
    path = saved(tmp_path, mavil())
    run_verb(
        "import",
        [str(path), str(tmp_path / "out"), "--format", "mavil", "--config", str(config), "--heads", "4", "--json"],
    )
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "out" / "import.json").read_text())
    assert set(report["loaded"]) == {"audio_encoder", "video_encoder", "fusion"}
    model = load_model(tmp_path / "out")
    assert isinstance(model, DiffMAViL)
    assert model.cfg.width == D
