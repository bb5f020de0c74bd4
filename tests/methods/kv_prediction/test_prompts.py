"""Cheaper ways to read a prompt: nothing pruned is the base, what is pruned is gone, and what it costs."""

from __future__ import annotations

import pytest
import torch

from avpretrain.methods.kv_prediction.layers import pruned_shape
from avpretrain.methods.kv_prediction.model import KVPredictor
from avpretrain.methods.kv_prediction.prompts import (
    PrunedPrompt,
    Read,
    continued,
    lazy_cost,
    matched,
    random_cost,
    read_lazily,
    read_random,
    read_static,
    read_whole,
    retention,
    static_cost,
)
from avpretrain.nn.rotary import rotary_tables, rotate
from tests.methods.kv_prediction.test_model import TINY, model_of

MODEL = model_of(1)
TOKENS = torch.randint(50, (3, 14), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "read", [read_whole(MODEL, 6), read_random(MODEL, 1.0), read_static(MODEL, 1.0), read_lazily(MODEL, 1.0, 1.0)]
)
def test_with_nothing_pruned_all_are_the_base(read: Read) -> None:
    with torch.no_grad():
        logits = MODEL.logits(TOKENS[:, :-1])
    targets = TOKENS[:, 8:, None]
    nll = -logits[:, 7:].log_softmax(-1).gather(-1, targets)[..., 0]
    found = continued(read, TOKENS, 8)
    torch.testing.assert_close(found.nll, nll, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.correct, (logits[:, 7].argmax(-1) == TOKENS[:, 8]).float())


@torch.no_grad()
def test_pruned_tokens_are_gone_and_the_rest_keep_their_places() -> None:
    """Other tokens where nothing is kept change nothing; a shift of positions would change everything."""
    read = read_random(MODEL, 0.5, seed=3)
    first = read(TOKENS[:, :8])
    assert isinstance(first, PrunedPrompt) and [kv.keys.shape[2] for kv in first.kept] == [4] * 4
    draws = torch.rand(3, 8, generator=torch.Generator().manual_seed(3))
    draws[:, -1] = torch.inf
    dropped = draws.argsort(dim=1)[:, :4]
    other = TOKENS[:, :8].scatter(1, dropped, 0)
    assert torch.equal(read(other).logits_BV, first.logits_BV)
    allowed = torch.ones(3, 8, 8, dtype=torch.bool).tril()  # by a mask in place of pruning
    for b in range(3):
        allowed[b, :, dropped[b]] = False
        allowed[b, dropped[b], 0] = True  # a row of nothing would be NaN; nobody sees it
    x, tables = MODEL.embed(TOKENS[:, :8]), rotary_tables(torch.arange(8), 8)
    for block in MODEL.blocks:
        x = block(x, tables, allowed[:, None])
    torch.testing.assert_close(MODEL.head(MODEL.norm(x[:, -1:]))[:, 0], first.logits_BV, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_tokens_that_are_attended_to_stay() -> None:
    found = read_static(MODEL, 0.5)(TOKENS[:, :8])
    assert isinstance(found, PrunedPrompt)
    block = MODEL.blocks[0]  # a quarter of four
    x = block.norm1(MODEL.embed(TOKENS[:, :8]))
    heads = block.attn.heads
    tables = rotary_tables(torch.arange(8), 8)
    q, k, _ = (
        block.attn.qkv(x)
        .view(3, 8, -1, 8)
        .transpose(1, 2)
        .split([heads, block.attn.kv_heads, block.attn.kv_heads], dim=1)
    )
    q, k = rotate(block.attn.q_norm(q), tables), rotate(block.attn.k_norm(k), tables)
    weight = sum((q[:, n, -1:] @ k[:, n // 2].transpose(1, 2) / 8**0.5).softmax(-1)[:, 0] for n in range(heads))
    weight[:, -1] = torch.inf
    chosen = weight.topk(4, dim=1).indices.sort(dim=1).values
    torch.testing.assert_close(
        found.kept[0].values,
        block.attn.qkv(x).view(3, 8, -1, 8).transpose(1, 2)[:, -block.attn.kv_heads :].gather(
            2, chosen[:, None, :, None].expand(-1, block.attn.kv_heads, -1, 8)
        ),
        atol=1e-5,
        rtol=1e-5,
    )  # fmt: skip


@torch.no_grad()
def test_progressive_pruning_keeps_fewer_and_fewer() -> None:
    assert retention(10, 0.8, 0.2) == pytest.approx([1, 1, 1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    found = read_lazily(MODEL, 0.75, 0.25)(TOKENS[:, :8])
    assert isinstance(found, PrunedPrompt)
    assert [kv.keys.shape[2] for kv in found.kept] == [8, 8, 5, 3], "shares 1, 1, 0.58 and 0.38"
    assert found.go_on(TOKENS[:, 8:]).shape == (3, 6, 50)


def test_costs_are_those_of_the_papers_table() -> None:
    assert [round(1 / random_cost(r), 2) for r in (0.75, 0.5, 0.25)] == [1.33, 2.0, 4.0]
    assert [round(1 / static_cost(r), 2) for r in (0.5, 0.25)] == [1.33, 2.0]
    assert [round(1 / lazy_cost(0.75, r), 2) for r in (0.75, 0.5, 0.25)] == [1.21, 1.38, 1.6]
    assert list(matched(MODEL, 0.28)) == ["random", "static"] and list(matched(MODEL, 0.2)) == ["random"]
    share = (0.52 - 0.3) / 0.7
    assert lazy_cost(share, share) == pytest.approx(0.52)


def test_a_predicted_cache_goes_on_with_the_base() -> None:
    base = model_of(1)
    model = KVPredictor(model_of(2, pruned_shape(TINY, (0, 2))), base, (0, 0, 1, 1)).eval()
    found = continued(read_whole(model, 6), TOKENS, 8)
    cache, nll = model.cache(14, 3), list[torch.Tensor]()
    with torch.no_grad():
        logits = model.logits(TOKENS[:, :8], cache)[:, 0]
        for i in range(8, 14):
            nll.append(-logits.log_softmax(-1).gather(-1, TOKENS[:, i : i + 1]))
            logits = base.logits(TOKENS[:, i : i + 1], cache)[:, 0]
    torch.testing.assert_close(found.nll, torch.cat(nll, dim=1), atol=1e-5, rtol=1e-5)
