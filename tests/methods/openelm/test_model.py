"""The language model: sizes of the paper's four, logits against the formulas, decoding with a cache."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from avpretrain.config.scaling import LayerScaling
from avpretrain.config.train import RunConfig
from avpretrain.core.errors import UserError
from avpretrain.methods.load import load_config
from avpretrain.methods.openelm.config import LanguageModelConfig, LanguageModelShape
from avpretrain.methods.openelm.model import LanguageModel, config_json, parameters
from avpretrain.nn.rms_norm import RMSNorm
from avpretrain.training.build import prepare_model

TINY = LanguageModelConfig(
    vocabulary=50,
    context=16,
    width=64,
    depth=3,
    head_width=16,
    heads_per_group=2,
    scaling=LayerScaling(alpha=(0.5, 1.0), beta=(0.5, 4.0), divisor=16),
).shape()


def tiny_model(seed: int = 0, **options: int) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(TINY, **options)
    for module in model.modules():  # norms that do nothing would hide where they stand
        if isinstance(module, RMSNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "count", "heads", "hidden_ends"),
    [
        ("270m", 271_527_168, [12] * 5 + [16] * 7 + [20] * 4, (768, 5120)),
        ("450m", 457_179_136, [12] * 3 + [16] * 7 + [20] * 6 + [24] * 4, (768, 6144)),
        ("1_1b", 1_079_891_456, [16] * 3 + [20] * 7 + [24] * 8 + [28] * 6 + [32] * 4, (1024, 8192)),
        ("3b", 3_036_647_424, [12] * 4 + [16] * 14 + [20] * 12 + [24] * 6, (1536, 12288)),
    ],
)
def test_presets_have_the_sizes_of_the_released_models(
    name: str, count: int, heads: list[int], hidden_ends: tuple[int, int]
) -> None:
    shape = load_config(f"openelm_{name}").model.shape()
    assert list(shape.heads) == heads
    assert (shape.hidden[0], shape.hidden[-1]) == hidden_ends
    assert parameters(shape) == count


def test_hidden_widths_of_the_smallest_by_layer() -> None:
    expected = [768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120]
    assert list(load_config("openelm_270m").model.shape().hidden) == expected


def reference(weights: dict[str, Tensor], shape: LanguageModelShape, tokens: Tensor) -> Tensor:
    """Logits by the formulas, in float64, a head and a position at a time; shares no code with the model."""
    weights = {name: value.double() for name, value in weights.items()}

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight

    def turn(x: Tensor, position: int) -> Tensor:
        half = len(x) // 2
        out = torch.empty_like(x)
        for i in range(half):
            angle = position * 10_000.0 ** (-2 * i / len(x))
            a, b = x[i], x[i + half]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    x, width = weights["embed.weight"][tokens], shape.head_width
    for n, (heads, hidden) in enumerate(zip(shape.heads, shape.hidden, strict=True)):
        w = {name.removeprefix(f"blocks.{n}."): v for name, v in weights.items() if name.startswith(f"blocks.{n}.")}
        groups = heads // shape.heads_per_group
        rows = norm(x, w["norm1.weight"]) @ w["attn.qkv.weight"].T
        mixed = torch.zeros(len(tokens), heads * width, dtype=torch.float64)
        for head in range(heads):
            g = head // shape.heads_per_group
            q = norm(rows[:, head * width : (head + 1) * width], w["attn.q_norm.weight"])
            k = norm(rows[:, (heads + g) * width : (heads + g + 1) * width], w["attn.k_norm.weight"])
            v = rows[:, (heads + groups + g) * width : (heads + groups + g + 1) * width]
            q = torch.stack([turn(row, position) for position, row in enumerate(q)])
            k = torch.stack([turn(row, position) for position, row in enumerate(k)])
            for i in range(len(tokens)):
                scores = torch.softmax(k[: i + 1] @ q[i] / math.sqrt(width), dim=0)
                mixed[i, head * width : (head + 1) * width] = scores @ v[: i + 1]
        x = x + mixed @ w["attn.proj.weight"].T
        both = norm(x, w["norm2.weight"]) @ w["mlp.fc1.weight"].T
        gate, value = both[:, :hidden], both[:, hidden:]
        x = x + (gate * torch.sigmoid(gate) * value) @ w["mlp.fc2.weight"].T
    return norm(x, weights["norm.weight"]) @ weights["embed.weight"].T


def test_logits_are_those_of_the_formulas() -> None:
    assert len(set(TINY.heads)) > 1 and len(set(TINY.hidden)) > 1, "blocks that differ"
    model, tokens = tiny_model(), torch.randint(50, (12,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model.logits(tokens[None])[0].double()
    torch.testing.assert_close(found, reference(model.state_dict(), TINY, tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 1, 5], [3, 4, 5]])
def test_cached_decoding_is_uncached_decoding(pieces: list[int]) -> None:
    model, tokens = tiny_model(), torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(2))
    cache, found = model.cache(12, 2), []
    with torch.no_grad():
        for part in tokens.split(pieces, dim=1):
            found.append(model.logits(part, cache))
        torch.testing.assert_close(torch.cat(found, 1), model.logits(tokens), atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="a cache for 12 tokens can't hold 13"):
            model.logits(tokens[:, :1], cache)


def test_a_document_sees_itself_alone_where_that_is_asked() -> None:
    mask, free = tiny_model(separator=7), tiny_model()
    tokens = torch.tensor([[7, 1, 2, 3, 7, 4, 5, 6]])
    with torch.no_grad():
        alone = free.logits(tokens[:, 4:])
        torch.testing.assert_close(mask.logits(tokens)[:, 4:], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mask.logits(tokens)[:, :4], free.logits(tokens)[:, :4], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(free.logits(tokens)[:, 4:], alone, atol=1e-2)


def test_losses_are_cross_entropy_and_the_squared_normaliser() -> None:
    model, tokens = tiny_model(z_loss=0.5), torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(3))
    losses, logits = model(tokens), model.logits(tokens[:, :-1])
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(losses["nll"], expected)
    torch.testing.assert_close(losses["z_loss"], logits.exp().sum(-1).log().square().mean())
    torch.testing.assert_close(losses["loss"], losses["nll"] + 0.5 * losses["z_loss"])


def test_initial_weights_have_the_spread_that_is_asked_for() -> None:
    torch.manual_seed(0)
    shape = LanguageModelConfig(vocabulary=400, width=256, depth=4, head_width=32, heads_per_group=1).shape()
    model = LanguageModel(shape)
    added = 256**-0.5 * 8**-0.5
    last = model.blocks[3]
    spreads = {
        model.embed: 256**-0.5, last.attn.qkv: 256**-0.5, last.attn.proj: added,
        last.mlp.fc1: 256**-0.5, last.mlp.fc2: added,
    }  # fmt: skip
    for module, expected in spreads.items():
        assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_checkpoints_store_the_lists(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(config_json(TINY))
    assert '"heads": [' in config_json(TINY) and "alpha" not in config_json(TINY)
    again = LanguageModel.from_pretrained(tmp_path)
    assert again.cfg == TINY
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(again.logits(tokens), model.logits(tokens))


def test_weights_of_another_alpha_are_refused_in_a_line(tmp_path: Path) -> None:
    save_model(tiny_model(), str(tmp_path / "model.safetensors"))
    other = LanguageModelConfig(
        vocabulary=50, context=16, width=64, depth=3, head_width=16, heads_per_group=2,
        scaling=LayerScaling(alpha=(1.0, 1.0), divisor=16),
    ).shape()  # fmt: skip
    (tmp_path / "config.json").write_text(config_json(other))
    with pytest.raises(UserError, match=r"'blocks.0.attn.qkv.weight' has shape \[64, 64\], the config asks for"):
        LanguageModel.from_pretrained(tmp_path)


def test_its_blocks_are_sharded_and_compiled_each_on_its_own() -> None:
    model = prepare_model(tiny_model(), RunConfig(activation_checkpointing=True))
    assert model._no_split_modules == ["CausalBlock"], "accelerate refuses names that a model lacks"
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model.logits(tokens), tiny_model().logits(tokens))


def test_the_matched_triple_is_matched() -> None:
    def arm(alpha: tuple[float, float], beta: tuple[float, float]) -> LanguageModelShape:
        scaling = LayerScaling(alpha=alpha, beta=beta, divisor=32)
        cfg = LanguageModelConfig(
            vocabulary=1000, width=384, depth=12, head_width=32, heads_per_group=1, scaling=scaling
        )
        return cfg.shape()

    layerwise, uniform, reverse = (
        arm((0.5, 1.0), (0.5, 4.0)), arm((0.75, 0.75), (2.25, 2.25)), arm((1.0, 0.5), (4.0, 0.5)),
    )  # fmt: skip
    assert layerwise.heads == (6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12)
    assert layerwise.hidden == (192, 320, 448, 544, 672, 800, 928, 1056, 1184, 1280, 1408, 1536)
    assert (uniform.heads, uniform.hidden) == ((9,) * 12, (864,) * 12)
    assert (reverse.heads, reverse.hidden) == (layerwise.heads[::-1], layerwise.hidden[::-1])
    embeddings_and_last_norm = 1000 * 384 + 384
    for shape in (layerwise, uniform, reverse):
        assert parameters(shape) - embeddings_and_last_norm == 17_262_336
