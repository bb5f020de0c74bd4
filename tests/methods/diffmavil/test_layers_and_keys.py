"""Stacks whose blocks differ, and names of weights that earlier versions wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from avpretrain.config.reader import from_dict, to_dict
from avpretrain.config.scaling import StackConfig
from avpretrain.config.train import OptimConfig
from avpretrain.core.errors import UserError
from avpretrain.methods.diffmavil.config import ModelConfig
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.training.build import make_optimizer
from avpretrain.training.checkpoint import Progress, restore, take_snapshot, write_snapshot
from avpretrain.training.folders import OPTIMIZER, WEIGHTS
from tests.support.tiny_models import random_batch, tiny

GROWING = StackConfig(alpha=(0.5, 1.0), beta=(0.5, 4.0), divisor=8)


def scaled() -> ModelConfig:
    """Every stack scaled; the first blocks have half the heads."""
    decoder = {"layers": GROWING}
    encoder = {"depth": 3, "layers": GROWING}
    return tiny(
        kind="cross_self",
        audio=encoder,
        video={**encoder, "layers": StackConfig(heads=(1, 2, 5), hidden=(8, 16, 24))},
        decoder=decoder,
        fusion=from_dict(type(tiny().fusion), {"kind": "bottleneck", "depth": 2, "layers": {"alpha": [1, 0.5]}}),
    )


def test_blocks_have_the_sizes_of_the_config() -> None:
    model = DiffMAViL(scaled())
    audio, video = model.tower("audio"), model.tower("video")
    assert [block.attn.heads for block in audio.encoder.blocks] == [2, 3, 4]
    assert [block.mlp.fc1.out_features for block in audio.encoder.blocks] == [24, 112, 192]
    assert [block.attn.qkv.out_features for block in video.encoder.blocks] == [36, 72, 180]  # heads are 12 wide
    assert [block.mlp.fc1.out_features for block in video.encoder.blocks] == [8, 16, 24]
    assert [block.attn.heads for block in model.fusion.video_blocks] == [4, 2]
    assert [block.mlp.fc1.out_features for block in model.fusion.blocks] == [192, 192]
    assert [block.cross_attn.heads for block in audio.decoder.blocks] == [2, 4]
    assert [block.mlp.fc1.out_features for block in audio.decoder.blocks] == [16, 128]


def test_scaled_stacks_train_and_are_saved_as_lists(tmp_path: Path) -> None:
    model = DiffMAViL(scaled())
    batch = random_batch(model.cfg)
    loss = model(batch, MaskRatios(0.75, 0.75))["loss"]
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["config"]
    assert stored["audio"]["layers"] == {
        "alpha": [],
        "beta": [],
        "divisor": 1,
        "heads": [2, 3, 4],
        "hidden": [24, 112, 192],
    }
    assert stored["fusion"]["layers"]["hidden"] == []
    again = DiffMAViL.from_pretrained(tmp_path)
    assert torch.equal(again(batch, MaskRatios(0.75, 0.75))["loss"], loss)


def test_uniform_stacks_say_nothing_of_layers() -> None:
    cfg = tiny()
    assert cfg.written_out == cfg
    flat = from_dict(ModelConfig, {**to_dict(cfg), "audio": {**to_dict(cfg)["audio"], "layers": {"heads": [4, 4]}}})
    shapes = [{n: p.shape for n, p in DiffMAViL(c).named_parameters()} for c in (cfg, flat)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ({"heads": [4]}, "audio.heads needs one entry for each of 2 blocks, got 1"),
        ({"alpha": [0.5]}, "alpha takes two values"),
        ({"alpha": [0.5, 1], "heads": [2, 4]}, "alpha and heads say the same thing"),
        ({"beta": [0, 4]}, "beta must lie in"),
        ({"hidden": [1, 0]}, "hidden must lie in"),
    ],
)
def test_impossible_layers_are_named(layers: dict[str, list[float]], says: str) -> None:
    values = to_dict(tiny())
    values["audio"]["layers"] = layers
    with pytest.raises(UserError, match=says):
        from_dict(ModelConfig, values, "model.")


def earlier(name: str) -> str:
    """What a weight was called before towers."""
    for side in ("audio", "video"):
        for part in ("encoder", "decoder"):
            name = name.replace(f"towers.{side}.{part}.", f"{side}_{part}.")
    return name


def rename(path: Path) -> None:
    save_file({earlier(name): tensor for name, tensor in load_file(path).items()}, path)


def test_weights_under_earlier_names_load(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = DiffMAViL(tiny())
    model.save_pretrained(tmp_path)
    rename(tmp_path / WEIGHTS)
    assert any(name.startswith("audio_encoder.") for name in load_file(tmp_path / WEIGHTS))
    again = DiffMAViL.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match=r"lacks 'towers\.video\.decoder\.head\.bias'"):
        state = load_file(tmp_path / WEIGHTS)
        del state["video_decoder.head.bias"]
        save_file(state, tmp_path / WEIGHTS)
        DiffMAViL.from_pretrained(tmp_path)


def test_checkpoints_under_earlier_names_resume(tmp_path: Path) -> None:
    cfg = tiny()

    def trained(seed: int) -> tuple[DiffMAViL, torch.optim.AdamW]:
        torch.manual_seed(seed)
        model = DiffMAViL(cfg)
        optimizer = make_optimizer(model, OptimConfig())
        model(random_batch(cfg, seed=seed), MaskRatios(0.75, 0.75))["loss"].backward()
        optimizer.step()
        return model, optimizer

    model, optimizer = trained(1)
    folder = write_snapshot(tmp_path, take_snapshot(model, optimizer, Progress(seen=4, step=1), cfg, "diffmavil"))
    rename(folder / WEIGHTS)
    rename(folder / OPTIMIZER)
    other, its = trained(2)
    restore(folder, other, its)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["exp_avg"], its.state[theirs]["exp_avg"])
