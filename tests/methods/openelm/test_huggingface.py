"""OpenELM in the layout of its release: random weights under the released names come in, and go out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from avpretrain.cli.main import main
from avpretrain.core.errors import UserError
from avpretrain.data.text.tokenizer import train_tokenizer
from avpretrain.methods.load import load_config, load_language_model
from avpretrain.methods.openelm.config import LanguageModelShape
from avpretrain.methods.openelm.conversions.huggingface import config_of, foreign_names, from_huggingface, shape_of
from tests.methods.openelm.test_model import reference
from tests.support.texts import sentences

CONFIG: dict[str, Any] = {
    "model_type": "openelm", "vocab_size": 270, "max_context_length": 32, "num_transformer_layers": 3, "model_dim": 64,
    "head_dim": 16, "qkv_multipliers": [0.5, 1.0], "num_gqa_groups": 2, "ffn_multipliers": [0.5, 2.0, 4.0],
    "ffn_dim_divisor": 16, "ffn_with_glu": True, "normalize_qk_projections": True, "share_input_output_layers": True,
    "rope_freq_constant": 10000, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS, HIDDEN = (2, 4, 4), (32, 128, 256)


def released(folder: Path, shards: int = 1, **changes: Any) -> dict[str, Tensor]:
    """Writes a folder as it is published, with random weights; the names are spelled out here on purpose."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    draw = torch.Generator().manual_seed(0)
    weights = {"transformer.token_embeddings.weight": torch.randn(270, 64, generator=draw)}
    weights["transformer.norm.weight"] = torch.rand(64, generator=draw) + 0.5
    for i, (heads, hidden) in enumerate(zip(HEADS, HIDDEN, strict=True)):
        shapes = {
            "attn.qkv_proj": ((heads + 2 * (heads // 2)) * 16, 64), "attn.out_proj": (64, heads * 16),
            "attn.q_norm": (16,), "attn.k_norm": (16,), "ffn.proj_1": (2 * hidden, 64), "ffn.proj_2": (64, hidden),
            "attn_norm": (64,), "ffn_norm": (64,),
        }  # fmt: skip
        for name, shape in shapes.items():
            value = (
                torch.randn(shape, generator=draw) / 8 if len(shape) == 2 else torch.rand(shape, generator=draw) + 0.5
            )
            weights[f"transformer.layers.{i}.{name}.weight"] = value
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return weights
    files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in files if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return weights


@pytest.mark.parametrize("shards", [1, 3])
def test_released_weights_give_the_logits_of_the_formulas(tmp_path: Path, shards: int) -> None:
    weights = released(tmp_path / "in", shards)
    model = from_huggingface(tmp_path / "in")
    assert (model.cfg.heads, model.cfg.hidden) == (HEADS, HIDDEN)
    tokens = torch.randint(270, (9,), generator=torch.Generator().manual_seed(1))
    expected = reference({ours: weights[theirs] for theirs, ours in foreign_names(3).items()}, model.cfg, tokens)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens[None])[0].double(), expected, atol=1e-4, rtol=1e-4)


def test_in_and_out_again_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = released(tmp_path / "in")
    train_tokenizer([sentences(50)], 270).save(tmp_path / "in")
    main(["import", str(tmp_path / "in"), str(tmp_path / "model"), "--format", "openelm", "--debug"])
    model, tokenizer = load_language_model(tmp_path / "model")
    main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--debug"])
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_query_heads"] == list(HEADS) and config["num_kv_heads"] == [1, 2, 2]
    assert config["bos_token_id"] == tokenizer.separator and shape_of(config, "config") == model.cfg
    capsys.readouterr()
    main(["generate", str(tmp_path / "model"), "The", "--tokens", "3", "--debug"])
    assert capsys.readouterr().out.startswith("The")


@pytest.mark.parametrize("name", ["openelm_270m", "openelm_450m", "openelm_1_1b", "openelm_3b"])
def test_the_lists_survive_the_way_there_and_back(name: str) -> None:
    shape = load_config(name).model.shape()
    written = json.loads(json.dumps(config_of(shape, 1, 2)))
    assert shape_of(written, "config") == shape
    ends = {"qkv_multipliers": [0.5, 1.0], "ffn_multipliers": [0.5, 4.0], "ffn_dim_divisor": 256}
    for listed in ("num_query_heads", "num_kv_heads"):
        del written[listed]
    assert shape_of({**written, **ends}, "config") == shape, "from the multipliers of the first and the last layer"


def test_multipliers_by_layer_are_those_of_the_release() -> None:
    multipliers = [
        0.5, 0.63, 0.76, 0.89, 1.02, 1.15, 1.28, 1.41, 1.54, 1.67, 1.8, 1.93, 2.06, 2.19, 2.31, 2.44, 2.57, 2.7, 2.83,
        2.96, 3.09, 3.22, 3.35, 3.48, 3.61, 3.74, 3.87, 4.0,
    ]  # fmt: skip
    shape = load_config("openelm_1_1b").model.shape()
    values = {**config_of(shape, 1, 2), "ffn_multipliers": multipliers, "ffn_dim_divisor": 256}
    found: LanguageModelShape = shape_of(values, "config")
    assert found == shape


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "llama"}, "is of a model of type 'llama', not 'openelm'"),
        ({"share_input_output_layers": False}, "share_input_output_layers is False; only True can be taken in"),
        ({"model_dim": 80}, r"has shape \[.*\], the config asks for"),
        ({"ffn_multipliers": [0.5, 2.0, 3.0, 4.0]}, "ffn_multipliers has 4 entries for 3 layers"),
        ({"num_kv_heads": [1, 1, 1]}, "num_kv_heads is not num_query_heads over num_gqa_groups"),
        ({"head_dim": "x"}, "invalid literal"),
        ({"qkv_multipliers": [1.0, 1.0]}, "'transformer.layers.0.attn.qkv_proj.weight' has shape"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    released(tmp_path, **changes)
    with pytest.raises(UserError, match=says) as error:
        from_huggingface(tmp_path)
    assert "\n" not in str(error.value)


def test_a_lost_or_alien_tensor_is_named(tmp_path: Path) -> None:
    weights = released(tmp_path)
    save_file({**weights, "lm_head.weight": torch.zeros(270, 64)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"the config has no place for 'lm_head\.weight'"):
        from_huggingface(tmp_path)
    del weights["transformer.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"it lacks 'transformer\.norm\.weight'"):
        from_huggingface(tmp_path)
