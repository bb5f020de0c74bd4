"""VideoMAE and DINOv2 in the layout of `transformers`: against plain forward passes, and against its own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avpretrain.cli.main import run as run_verb
from avpretrain.config.model import InputConfig
from avpretrain.core.errors import UsageError, UserError
from avpretrain.methods.diffmavil.conversions.importers import import_checkpoint
from avpretrain.methods.load import load_model
from tests.methods.diffmavil.test_importers import (
    BASE,
    HEADS,
    LAYERS,
    TOLERANCE,
    D,
    Weights,
    block,
    norm,
    patch_embed,
    run_block,
    run_norm,
    run_vit,
    still,
)
from tests.support.tiny_models import tiny

VIDEOMAE = {
    "model_type": "videomae", "num_attention_heads": HEADS, "image_size": 32, "patch_size": 16, "num_frames": 4,
    "tubelet_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
DINOV2 = {"model_type": "dinov2", "num_attention_heads": HEADS, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
GRID = {"videomae": 2 * 2 * 2, "dinov2": 3 * 3}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def folder(place: Path, weights: Weights, config: dict[str, Any]) -> Path:
    place.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(config))
    return place


def layers(names: dict[str, str], qkv: tuple[str, str, str], key_bias: bool) -> tuple[Weights, Weights]:
    """Blocks by our names, and the same by those of `transformers`."""
    ours: Weights = {}
    theirs: Weights = {}
    for i in range(LAYERS):
        layer = block("")
        if not key_bias:
            layer["attn.qkv.bias"][D : 2 * D] = 0
        ours |= {f"blocks.{i}.{key}": value for key, value in layer.items()}
        for name, value in layer.items():
            part, kind = name.rsplit(".", 1)
            if part == "attn.qkv":
                parts = zip(qkv, value.chunk(3), strict=True)
                theirs |= {f"encoder.layer.{i}.{q}.{kind}": third for q, third in parts}
            else:
                theirs[f"encoder.layer.{i}.{names[part]}.{kind}"] = value
    return ours, theirs


def videomae() -> tuple[Weights, Weights]:
    """As on the hub, where biases of queries and values have names of their own."""
    names = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    prefix = "attention.attention."
    ours, theirs = layers(names, (f"{prefix}query", f"{prefix}key", f"{prefix}value"), key_bias=False)
    for i in range(LAYERS):
        del theirs[f"encoder.layer.{i}.{prefix}key.bias"]
        for name, short in (("query", "q"), ("value", "v")):
            at = f"encoder.layer.{i}.{prefix}"
            theirs[f"{at}{short}_bias"] = theirs.pop(f"{at}{name}.bias")
    ours |= patch_embed("patch_embed", 3, 2, 16, 16) | norm("norm.")
    theirs |= {f"embeddings.patch_embeddings.projection.{k}": ours[f"patch_embed.proj.{k}"] for k in ("weight", "bias")}
    theirs |= {f"layernorm.{k}": ours[f"norm.{k}"] for k in ("weight", "bias")}
    return ours, {**{f"videomae.{key}": value for key, value in theirs.items()}, "mask_token": torch.zeros(1, 1, 32)}


def dinov2(old: bool) -> tuple[Weights, Weights]:
    """Positions of 3 x 3 patches.

    Args:
        old: by the names on the hub; otherwise by those of transformers 5.
    """
    names = {
        "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
        "attn.proj": "attention.output.dense" if old else "attention.o_proj",
    }  # fmt: skip
    qkv = tuple(f"attention.attention.{n}" if old else f"attention.{n[0]}_proj" for n in ("query", "key", "value"))
    ours, theirs = layers(names, (qkv[0], qkv[1], qkv[2]), key_bias=True)
    for i in range(LAYERS):
        for n, layer in ((1, "attn.proj"), (2, "mlp.fc2")):
            gamma_D = theirs[f"encoder.layer.{i}.layer_scale{n}.lambda1"] = torch.randn(D)
            for kind in ("weight", "bias"):
                key = f"blocks.{i}.{layer}.{kind}"
                ours[key] = ours[key] * (gamma_D[:, None] if kind == "weight" else gamma_D)
    ours |= patch_embed("patch_embed", 3, 16, 16) | norm("norm.")
    ours |= {"cls_token": torch.randn(1, 1, D), "pos_embed": torch.randn(1, 1 + 9, D)}
    theirs |= {"embeddings.cls_token": ours["cls_token"], "embeddings.position_embeddings": ours["pos_embed"]}
    theirs |= {f"embeddings.patch_embeddings.projection.{k}": ours[f"patch_embed.proj.{k}"] for k in ("weight", "bias")}
    theirs |= {f"layernorm.{k}": ours[f"norm.{k}"] for k in ("weight", "bias")}
    return ours, {**theirs, "embeddings.mask_token": torch.zeros(1, D)}


BASE_48 = tiny(input=InputConfig(audio_frames=64, mels=128, video_frames=4, video_size=48), audio={"patch": (16, 16)},
               video={"patch": (2, 16, 16)})  # fmt: skip


def test_videomae(tmp_path: Path) -> None:
    """Positions by the formula of the paper that introduced them, one value at a time."""
    ours, theirs = videomae()
    model, report = import_checkpoint(folder(tmp_path / "m", theirs, VIDEOMAE), "videomae", BASE)
    video = torch.randn(2, 4, 3, 32, 32)
    x = torch.nn.functional.conv3d(
        video.transpose(1, 2), ours["patch_embed.proj.weight"], ours["patch_embed.proj.bias"], stride=(2, 16, 16)
    )
    x = x.flatten(2).transpose(1, 2)
    angle = [[p / 10_000 ** (2 * (j // 2) / D) for j in range(D)] for p in range(8)]
    x = x + torch.tensor(
        [[float(torch.tensor(a).cos() if j % 2 else torch.tensor(a).sin()) for j, a in enumerate(row)] for row in angle]
    )
    for i in range(LAYERS):
        x = run_block(x, ours, f"blocks.{i}.", eps=1e-12)
    torch.testing.assert_close(model.encode_video(video), run_norm(x, ours, "norm", 1e-12), **TOLERANCE)
    assert model.cfg.heads == HEADS
    assert not model.cfg.cls_token
    assert report.unused == ["mask_token"]
    assert report.missing == []
    assert any("epsilon 1e-12" in line for line in report.adapted)


def test_finetuned_videomae_has_no_last_norm(tmp_path: Path) -> None:
    _, theirs = videomae()
    theirs = {key: value for key, value in theirs.items() if "layernorm." not in key} | norm("fc_norm.")
    model, report = import_checkpoint(folder(tmp_path / "m", theirs, VIDEOMAE), "videomae", BASE)
    assert not model.cfg.encoder_norm
    assert any("fc_norm" in line for line in report.adapted)


@pytest.mark.parametrize("old", [True, False])
def test_dinov2(tmp_path: Path, old: bool) -> None:
    ours, theirs = dinov2(old)
    place = folder(tmp_path / "m", theirs, DINOV2)
    model, report = import_checkpoint(place / "model.safetensors", "dinov2", BASE_48, "video")
    image = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(model.encode_video(still(image)[:, :2]), run_vit(image, ours), **TOLERANCE)
    assert report.unused == ["embeddings.mask_token"]
    assert report.missing == []
    assert any("LayerScale" in line for line in report.adapted)


def test_what_our_blocks_can_not_do_is_refused(tmp_path: Path) -> None:
    _, theirs = dinov2(old=True)

    def refused(words: str, weights: Weights, config: dict[str, Any], format: Any = "dinov2") -> None:
        with pytest.raises(UserError, match=words):
            import_checkpoint(folder(tmp_path / "m", weights, config), format, BASE_48)

    refused("has register tokens", theirs, {**DINOV2, "model_type": "dinov2_with_registers"})
    refused("has register tokens", theirs | {"embeddings.register_tokens": torch.zeros(1, 4, D)}, DINOV2)
    refused("gated MLPs", theirs | {"encoder.layer.0.mlp.weights_in.weight": torch.zeros(8, D)}, DINOV2)
    refused("use 'relu'", theirs, {**DINOV2, "hidden_act": "relu"})
    refused("model_type 'vit', not 'dinov2'", theirs, {**DINOV2, "model_type": "vit"})
    refused("must say num_attention_heads", theirs, {"model_type": "dinov2"})
    refused("lacks 'attn.proj.weight'", {k: v for k, v in theirs.items() if "0.attention.output" not in k}, DINOV2)
    refused("unknown here", theirs | {"encoder.layer.1.norm3.weight": torch.zeros(D)}, DINOV2)
    refused("their numbers reach 7", theirs | {"encoder.layer.7.norm1.weight": torch.zeros(D)}, DINOV2)
    _, video = videomae()
    refused("too many", video, {**VIDEOMAE, "num_frames": 60_000, "image_size": 60_000}, "videomae")
    refused("config.json says", video, {**VIDEOMAE, "patch_size": 8}, "videomae")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json beside"):
        import_checkpoint(tmp_path / "m", "dinov2", BASE_48)
    with pytest.raises(UsageError, match="says 4 heads"):
        import_checkpoint(folder(tmp_path / "m", theirs, DINOV2), "dinov2", BASE_48, heads=2)


def randomised(theirs: Any) -> Any:
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return theirs.eval()


def test_transformers_videomae(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="held to transformers: pip install transformers")
    config = transformers.VideoMAEConfig(
        image_size=32, num_frames=4, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * D, decoder_hidden_size=16, decoder_num_attention_heads=2, decoder_num_hidden_layers=1,
        decoder_intermediate_size=16, use_mean_pooling=False,
    )  # fmt: skip
    theirs = randomised(transformers.VideoMAEForPreTraining(config))
    theirs.save_pretrained(tmp_path / "m")
    model, report = import_checkpoint(tmp_path / "m", "videomae", BASE)
    video = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.videomae(video).last_hidden_state
        torch.testing.assert_close(model.encode_video(video), expected, **TOLERANCE)
    assert report.missing == []
    assert all(key.startswith(("decoder.", "encoder_to_decoder.", "mask_token")) for key in report.unused)


@pytest.mark.parametrize("size", [48, 64])
def test_transformers_dinov2(tmp_path: Path, size: int) -> None:
    """At its own size, and where positions are interpolated."""
    transformers = pytest.importorskip("transformers", reason="held to transformers: pip install transformers")
    config = transformers.Dinov2Config(
        image_size=48, patch_size=16, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=HEADS
    )
    theirs = randomised(transformers.Dinov2Model(config))
    theirs.save_pretrained(tmp_path / "m")
    base = tiny(input=InputConfig(audio_frames=64, mels=128, video_frames=4, video_size=size),
                audio={"patch": (16, 16)}, video={"patch": (2, 16, 16)})  # fmt: skip
    run_config = tmp_path / "c.yaml"
    run_config.write_text(f"model:\n  input: {{audio_frames: 64, video_frames: 4, video_size: {size}}}\n")
    run_verb("import", [str(tmp_path / "m"), str(tmp_path / "out"), "--format", "dinov2", "--config", str(run_config),
                        "--into", "video"])  # fmt: skip
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected: Tensor = theirs(image).last_hidden_state
        for model in (import_checkpoint(tmp_path / "m", "dinov2", base, "video")[0], load_model(tmp_path / "out")):
            torch.testing.assert_close(model.encode_video(still(image)[:, :2]), expected, **TOLERANCE)
