"""KV prediction: maps of layers, costs of the paper's pairs, and that an identity changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from avpretrain.config.scaling import LayerScaling
from avpretrain.methods.kv_prediction.config import KVPredictorShape
from avpretrain.methods.kv_prediction.cost import prompt_cost
from avpretrain.methods.kv_prediction.layers import kept_layers, pruned_map, pruned_shape
from avpretrain.methods.kv_prediction.model import KVPredictor, keep_layers
from avpretrain.methods.load import load_config
from avpretrain.methods.openelm.config import LanguageModelConfig
from avpretrain.methods.openelm.generate import generate
from avpretrain.methods.openelm.model import LanguageModel
from avpretrain.nn.external_kv import ExternalKV, RecordedKV
from avpretrain.nn.rms_norm import RMSNorm
from avpretrain.nn.rotary import rotary_tables, rotate

TINY = LanguageModelConfig(
    vocabulary=50,
    context=16,
    width=32,
    depth=4,
    head_width=8,
    heads_per_group=2,
    scaling=LayerScaling(alpha=(0.5, 1.0), beta=(0.5, 4.0), divisor=8),
).shape()


def model_of(seed: int = 0, shape: LanguageModelConfig | None = None) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(shape or TINY)
    for module in model.modules():  # norms that do nothing would hide where they stand
        if isinstance(module, RMSNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


# --- maps -------------------------------------------------------------------------------------------------------------


def runs(*counts: int) -> tuple[int, ...]:
    """0 as often as the first says, 1 as often as the second, and so on."""
    return tuple(layer for layer, count in enumerate(counts) for _ in range(count))


@pytest.mark.parametrize(
    ("preset", "layer_map"),
    [
        ("kvp_1_1b_c_450m", runs(*[2] * 8, *[1] * 12)),
        ("kvp_1_1b_c_270m", runs(*[2] * 12, *[1] * 4)),
        ("kvp_1_1b_lp_75", runs(*[1, 1, 2] * 7)),
        ("kvp_1_1b_lp_50", runs(*[2] * 14)),
        ("kvp_1_1b_lp_25", runs(*[4] * 7)),
        ("kvp_3b_c_1_1b", runs(*[2] * 8, *[1] * 20)),
        ("kvp_3b_c_450m", runs(*[2] * 16, *[1] * 4)),
        ("kvp_3b_c_270m", runs(*[3] * 4, *[2] * 12)),
        ("kvp_3b_lp_75", runs(*[1, 1, 2] * 9)),
        ("kvp_3b_lp_50", runs(*[2] * 18)),
        ("kvp_3b_lp_25", runs(*[4] * 9)),
    ],
)
def test_the_two_rules_give_the_released_maps(preset: str, layer_map: tuple[int, ...]) -> None:
    """As the released configs list them (apple/corenet, projects/kv-prediction)."""
    assert load_config(preset).shape().layer_map == layer_map


@pytest.mark.parametrize(
    ("preset", "ratio"),
    [
        ("kvp_1_1b_c_450m", 2.36), ("kvp_1_1b_c_270m", 3.98),
        ("kvp_1_1b_lp_75", 1.34), ("kvp_1_1b_lp_50", 1.93), ("kvp_1_1b_lp_25", 3.60),
        ("kvp_3b_c_1_1b", 2.81), ("kvp_3b_c_450m", 6.64), ("kvp_3b_c_270m", 11.18),
        ("kvp_3b_lp_75", 1.34), ("kvp_3b_lp_50", 1.97), ("kvp_3b_lp_25", 3.84),
    ],
)  # fmt: skip
def test_flops_reductions_are_the_papers(preset: str, ratio: float) -> None:
    assert round(prompt_cost(load_config(preset).shape()).reduction, 2) == ratio


def test_predictors_are_small_and_count_in_the_exact_cost() -> None:
    small, large = (prompt_cost(load_config(f"kvp_1_1b_c_{name}").shape()) for name in ("270m", "450m"))
    assert round(small.predictor / 1e6, 2) == 5.44 and round(large.predictor / 1e6, 2) == 6.21
    assert round(small.reduction_at(59), 2) == 3.66 and round(large.reduction_at(59), 2) == 2.24
    assert round(small.reduction_at(1024), 2) == 3.88 and round(large.reduction_at(1024), 3) == 2.325


def test_maps_that_lead_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match="layer_map names layer 4; the auxiliary model has 0 to 3"):
        KVPredictor(model_of(), model_of(), (0, 1, 2, 4))
    with pytest.raises(ValueError, match="layer_map has 3 entries; the base has 4 layers"):
        KVPredictor(model_of(), model_of(), (0, 1, 2))
    other = dataclasses.replace(TINY, vocabulary=60)
    with pytest.raises(ValueError, match="must share a vocabulary, got 60 and 50"):
        KVPredictorShape(auxiliary=other, base=TINY, layer_map=(0, 1, 2, 3))


# --- the identity, and what is not one --------------------------------------------------------------------------------


@torch.no_grad()
def test_with_an_identity_all_paths_are_the_base() -> None:
    """The check of the released code: same weights on both sides, maps that hand on what they are given."""
    base = model_of(1)
    model = KVPredictor(model_of(1), base, range(4)).eval()
    model.predictor.set_identity()
    tokens = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    wanted = base.logits(tokens)
    torch.testing.assert_close(model.logits(tokens), wanted, atol=1e-5, rtol=0)
    cache = model.cache(9, 3)
    first = model.logits(tokens[:, :5], cache)
    assert first.shape == (3, 1, 50) and cache.length == 5
    torch.testing.assert_close(first[:, 0], wanted[:, 4], atol=1e-5, rtol=0)
    for i in range(5, 9):
        step = model.logits(tokens[:, i : i + 1], cache)
        torch.testing.assert_close(step[:, 0], wanted[:, i], atol=1e-5, rtol=0)
    assert list(generate(model, tokens[0].tolist(), 5, 0)) == list(generate(base, tokens[0].tolist(), 5, 0))
    alone = model.logits(tokens[:, :1], model.cache(1, 3))  # a prompt of one token: there is nothing to predict
    torch.testing.assert_close(alone[:, 0], wanted[:, 0], atol=1e-5, rtol=0)
    losses = model.train()(tokens)
    assert losses["cache_l1"] < 1e-5 and losses["nll"] == pytest.approx(float(losses["auxiliary_nll"]), abs=1e-5)


@torch.no_grad()
def test_a_prediction_that_is_no_identity_is_used_and_replaces_the_tokens_own() -> None:
    base, small = model_of(1), model_of(2, pruned_shape(TINY, (0, 2)))
    model = KVPredictor(small, base, (0, 0, 1, 1)).eval()
    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
    found, rows = model.logits(tokens), list[torch.Tensor]()
    # by the definition: a base whose every key and value, those of the last token included, comes from the maps
    read: list[RecordedKV] = []
    small.hidden(tokens, record=read)
    x, tables = base.embed(tokens), rotary_tables(torch.arange(7), 8)
    for i, block in enumerate(base.blocks):
        source, attention = read[model.shape.layer_map[i]], block.attn
        merged = source.raw.transpose(1, 2).flatten(2), source.values.transpose(1, 2).flatten(2)
        keys = model.predictor.keys[i](merged[0]).view(2, 7, -1, 8).transpose(1, 2)
        values = model.predictor.values[i](merged[1]).view(2, 7, -1, 8).transpose(1, 2)
        keys = rotate(attention.k_norm(keys), tables)
        queries = attention.qkv(block.norm1(x))[..., : attention.heads * 8].view(2, 7, -1, 8).transpose(1, 2)
        queries = rotate(attention.q_norm(queries), tables)
        rows = []
        for head in range(attention.heads):
            k, v = keys[:, head // 2], values[:, head // 2]
            scores = (queries[:, head] @ k.transpose(1, 2) / 8**0.5).masked_fill(
                torch.ones(7, 7).triu(1).bool(), -torch.inf
            )
            rows.append(scores.softmax(-1) @ v)
        x = x + attention.proj(torch.cat(rows, dim=-1))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(found, base.norm(x) @ base.embed.weight.T, atol=1e-5, rtol=1e-5)
    assert (found - base.logits(tokens)).abs().max() > 0.1
    # in prefill the last token's own keys and values are the base's, so its logits differ from those of training
    prefilled = model.logits(tokens, model.cache(7, 2))[:, 0]
    assert (prefilled - found[:, -1]).abs().max() > 1e-3


@torch.no_grad()
def test_external_keys_may_come_before_the_tokens_own() -> None:
    """Appending to raw, to normalised or to turned keys is what a cache does."""
    model = model_of(3)
    tokens = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))
    before: list[RecordedKV] = []
    model.hidden(tokens[:, :5], record=before)
    early, late = rotary_tables(torch.arange(5), 8), rotary_tables(torch.arange(5, 8), 8)
    allowed = (torch.arange(8) <= torch.arange(5, 8)[:, None])[None, None]
    cache = model.cache(8, 2)
    model.logits(tokens[:, :5], cache)
    wanted = model.hidden(tokens[:, 5:], cache)
    for stage in ("raw", "normed", "rotated"):
        x = model.embed(tokens[:, 5:])
        for block, kv in zip(model.blocks, before, strict=True):
            keys = {"raw": kv.raw, "normed": kv.normed, "rotated": rotate(kv.normed, early)}[stage]
            external = ExternalKV(keys, kv.values, stage, append=True, tables=early)
            x = block(x, late, allowed, None, 0, external)
        torch.testing.assert_close(model.norm(x), wanted, atol=1e-5, rtol=1e-5)


# --- training ---------------------------------------------------------------------------------------------------------


def test_gradients_flow_through_the_frozen_base() -> None:
    base, small = model_of(1), model_of(2, pruned_shape(TINY, (0, 2)))
    model = KVPredictor(small, base, (0, 0, 1, 1)).train()
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    losses = model(tokens)
    model.weights = dataclasses.replace(model.weights, auxiliary=0.0, cache=0.0)
    model(tokens)["loss"].backward()  # the base's cross-entropy alone
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not any(name.startswith("base.") for name in moved)
    assert all(p.grad is None for p in model.base.parameters())
    assert {f"predictor.{kind}.{i}.weight" for kind in ("keys", "values") for i in range(4)} <= moved
    assert "auxiliary.blocks.0.attn.qkv.weight" in moved
    # the total is the sum of its parts, the cache's by one over the base's layers unless it is said
    torch.testing.assert_close(
        losses["loss"].detach(), losses["nll"] + losses["auxiliary_nll"] + losses["cache_l1"] / 4
    )


@torch.no_grad()
def test_the_distance_of_caches_is_a_mean_in_each_layer_and_a_sum_over_them() -> None:
    base, small = model_of(1), model_of(2, pruned_shape(TINY, (0, 2)))
    model = KVPredictor(small, base, (0, 0, 1, 1)).train()
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    read, wanted = list[RecordedKV](), list[RecordedKV]()
    small.hidden(tokens[:, :-1], record=read)
    base.hidden(tokens[:, :-1], record=wanted)
    total = 0.0
    for i, external in enumerate(model._predict(read)):
        keys = base.blocks[i].attn.k_norm(external.keys)
        total += (keys - wanted[i].normed).abs().mean().item() + (
            external.values - wanted[i].values
        ).abs().mean().item()
    assert model(tokens)["cache_l1"].item() == pytest.approx(total, rel=1e-5)


@torch.no_grad()
def test_a_pruned_copy_has_the_layers_that_it_keeps() -> None:
    base = model_of(1)
    for share, kept in ((0.25, (0,)), (0.5, (0, 2)), (0.75, (0, 1, 2))):
        assert kept_layers(4, share) == kept
        pruned = keep_layers(base, kept, LanguageModel(pruned_shape(TINY, kept)))
        for ours, layer in zip(pruned.blocks, kept, strict=True):
            for a, b in zip(ours.parameters(), base.blocks[layer].parameters(), strict=True):
                assert torch.equal(a, b)
        assert torch.equal(pruned.embed.weight, base.embed.weight) and torch.equal(pruned.norm.weight, base.norm.weight)
    assert pruned_map(7, kept_layers(7, 0.75)) == (0, 1, 2, 2, 3, 4, 5)


@torch.no_grad()
def test_shuffling_moves_positions_in_training_alone() -> None:
    base, small = model_of(1), model_of(2, pruned_shape(TINY, (0, 2)))
    plain = KVPredictor(small, base, (0, 0, 1, 1))
    shuffled = KVPredictor(small, base, (0, 0, 1, 1), shuffle=True)
    shuffled.load_state_dict(plain.state_dict())
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    assert plain.train()(tokens)["nll"] != shuffled.train()(tokens)["nll"]
    assert torch.equal(plain.eval().logits(tokens), shuffled.eval().logits(tokens))
