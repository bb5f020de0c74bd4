"""Ways to read a prompt at less cost than the base takes for all of it, and to go on from what was read.

Each gives the logits of the next token and the keys and values that the model goes on with; they differ in whose tokens
are computed in which layers. Pruned tokens are gone for good, and those that stay keep their positions.

B samples, N tokens of the prompt, M tokens after it, C tokens that a layer keeps, D width, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from avpretrain.methods.openelm.model import LanguageModel, TextModel
from avpretrain.nn.causal_block import CausalBlock, Tables
from avpretrain.nn.external_kv import ExternalKV, RecordedKV
from avpretrain.nn.kv_cache import KVCache
from avpretrain.nn.rotary import rotary_tables, rotate

PROBED = 0.25
"""Share of the layers that static pruning runs on the whole prompt before it chooses."""
LAZY_FROM, LAZY_TO = 0.3, 0.9
"""Depths between which progressive pruning goes from its first retention to its last."""


class Prompt(ABC):
    """A prompt that was read."""

    logits_BV: Tensor
    """Of the next token."""

    @abstractmethod
    def go_on(self, tokens_BM: Tensor) -> Tensor:
        """Logits of the token after each of these, [B, M, V], which follow the prompt."""


Read = Callable[[Tensor], Prompt]
"""Reads prompts of equal length, int64 [B, N]."""


@dataclass(eq=False)
class CachedPrompt(Prompt):
    """A prompt in an ordinary cache."""

    model: TextModel
    cache: KVCache
    logits_BV: Tensor

    def go_on(self, tokens_BM: Tensor) -> Tensor:
        return self.model.logits(tokens_BM, self.cache)


@dataclass(eq=False)
class PrunedPrompt(Prompt):
    """A prompt of which each layer kept tokens of its own."""

    model: LanguageModel
    kept: list[ExternalKV]
    """Turned keys, and values, of each layer."""
    length: int
    """Tokens of the whole prompt: the next one's position."""
    logits_BV: Tensor

    def go_on(self, tokens_BM: Tensor) -> Tensor:
        model, count = self.model, tokens_BM.shape[1]
        tables = rotary_tables(torch.arange(self.length, self.length + count, device=tokens_BM.device), *_rotary(model))
        own_MM = torch.ones(count, count, dtype=torch.bool, device=tokens_BM.device).tril()
        x_BMD = model.embed(tokens_BM)
        for block, external in zip(model.blocks, self.kept, strict=True):
            allowed = F.pad(own_MM, (external.keys.shape[2], 0), value=True)[None, None]
            x_BMD = block(x_BMD, tables, allowed, None, 0, external)
        return model.head(model.norm(x_BMD))


def read_whole(model: TextModel, room: int = 0) -> Read:
    """The model reads every token itself, or where it predicts its cache, as it does for its prompts.

    Args:
        room: tokens that may follow.
    """

    def read(tokens_BN: Tensor) -> Prompt:
        cache = model.cache(tokens_BN.shape[1] + room, len(tokens_BN))
        return CachedPrompt(model, cache, model.logits(tokens_BN, cache)[:, -1])

    return read


def read_random(model: LanguageModel, keep: float, seed: int = 0) -> Read:
    """The model reads a random share of the tokens; the last one is always among them."""

    def read(tokens_BN: Tensor) -> Prompt:
        count, length = _count(keep, tokens_BN.shape[1]), tokens_BN.shape[1]
        draws = torch.rand(tokens_BN.shape, generator=torch.Generator().manual_seed(seed)).to(tokens_BN.device)
        return _read_some(model, tokens_BN, _best(draws, count), length)

    return read


def read_static(model: LanguageModel, keep: float, probed: float = PROBED) -> Read:
    """The first layers read all; the tokens that the last one attends to most there are read by the whole model."""

    def read(tokens_BN: Tensor) -> Prompt:
        count, length = _count(keep, tokens_BN.shape[1]), tokens_BN.shape[1]
        layers = max(1, round(probed * len(model.blocks)))
        x_BND = model.embed(tokens_BN)
        tables = rotary_tables(torch.arange(length, device=tokens_BN.device), *_rotary(model))
        for block in model.blocks[:layers]:
            x_BND, weight_BN, _ = _step(cast(CausalBlock, block), x_BND, tables)
        return _read_some(model, tokens_BN, _best(weight_BN, count), length)

    return read


def read_lazily(model: LanguageModel, start: float, end: float) -> Read:
    """Tokens are dropped layer by layer, those first that the last one attends to least in the layer before.

    After LazyLLM (Fu et al. 2024, arXiv 2407.14057); tokens that were dropped do not come back.

    Args:
        start: share of tokens that is kept at `LAZY_FROM` of the depth.
        end: share at `LAZY_TO` and after it; between them it moves on a line.
    """
    shares = retention(len(model.blocks), start, end)

    def read(tokens_BN: Tensor) -> Prompt:
        length = tokens_BN.shape[1]
        positions_BC = torch.arange(length, device=tokens_BN.device).expand(len(tokens_BN), -1)
        x_BCD, kept = model.embed(tokens_BN), list[ExternalKV]()
        weight_BC: Tensor | None = None
        for block, share in zip(model.blocks, shares, strict=True):
            count = _count(share, length)
            if weight_BC is not None and count < x_BCD.shape[1]:
                chosen = _best(weight_BC, count)
                x_BCD = x_BCD.gather(1, chosen[..., None].expand(-1, -1, x_BCD.shape[2]))
                positions_BC = positions_BC.gather(1, chosen)
            x_BCD, weight_BC, external = _step(cast(CausalBlock, block), x_BCD, _tables(model, positions_BC))
            kept.append(external)
        logits_BV = model.head(model.norm(x_BCD[:, -1:]))[:, 0]
        return PrunedPrompt(model, kept, length, logits_BV)

    return read


def retention(depth: int, start: float, end: float) -> list[float]:
    """Share of tokens that each layer computes under progressive pruning."""
    shares = []
    for layer in range(depth):
        place = (layer / depth - LAZY_FROM) / (LAZY_TO - LAZY_FROM)
        shares.append(1.0 if place < 0 else start + (end - start) * min(1.0, place))
    return shares


# --- costs, as shares of the base's own -------------------------------------------------------------------------------


def random_cost(keep: float) -> float:
    """Of random pruning."""
    return keep


def static_cost(keep: float) -> float:
    """Of static pruning: the probe, then the tokens that are kept."""
    return PROBED + keep


def lazy_cost(start: float, end: float) -> float:
    """Of progressive pruning."""
    return LAZY_FROM + (LAZY_TO - LAZY_FROM) * (start + end) / 2 + (1 - LAZY_TO) * end


def matched(model: LanguageModel, cost: float) -> dict[str, Read]:
    """The pruning baselines whose cost is a share of the base's, by name; those that can't be so cheap are left out."""
    found = {"random": read_random(model, cost)}
    if cost > PROBED:
        found["static"] = read_static(model, cost - PROBED)
    if cost > LAZY_FROM:
        share = (cost - LAZY_FROM) / (1 - LAZY_FROM)
        found["lazy"] = read_lazily(model, share, share)
    return found


# --- what they are measured by ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Continued:
    """How well what follows prompts was predicted."""

    correct: Tensor
    """Whether the first token after it was the likeliest one, float [B]."""
    nll: Tensor
    """Nats of each token that follows, [B, M]."""


@torch.no_grad()
def continued(read: Read, tokens_BT: Tensor, prompt: int) -> Continued:
    """Predicts what follows the first `prompt` tokens of each sample, from them and from what followed so far."""
    state, rest_BM = read(tokens_BT[:, :prompt]), tokens_BT[:, prompt:]
    logits_BMV = state.logits_BV[:, None]
    if rest_BM.shape[1] > 1:
        logits_BMV = torch.cat([logits_BMV, state.go_on(rest_BM[:, :-1])], dim=1)
    logits_BMV = logits_BMV.float()
    nll_BM = -logits_BMV.log_softmax(-1).gather(-1, rest_BM[..., None])[..., 0]
    return Continued((logits_BMV[:, 0].argmax(-1) == rest_BM[:, 0]).float(), nll_BM)


# --- parts ------------------------------------------------------------------------------------------------------------


def _rotary(model: LanguageModel) -> tuple[int, float]:
    return model.cfg.head_width, model.cfg.rope_base


def _tables(model: LanguageModel, positions_BC: Tensor) -> Tables:
    """[B, 1, C, H] each."""
    cos, sin = rotary_tables(positions_BC.flatten(), *_rotary(model))
    size = (len(positions_BC), 1, positions_BC.shape[1], -1)
    return cos.view(size), sin.view(size)


def _count(share: float, length: int) -> int:
    return min(length, max(1, math.ceil(share * length - 1e-9)))


def _best(weight_BC: Tensor, count: int) -> Tensor:
    """Places of the last token and of the `count - 1` others of most weight, in order, [B, count]."""
    weight_BC = weight_BC.clone()
    weight_BC[:, -1] = torch.inf
    return weight_BC.topk(count, dim=1).indices.sort(dim=1).values


def _step(block: CausalBlock, x_BCD: Tensor, tables: Tables) -> tuple[Tensor, Tensor, ExternalKV]:
    """Tokens after a block, what the last one attended to in it (mean over heads, [B, C]), turned keys and values."""
    record: list[RecordedKV] = []
    out_BCD = block(x_BCD, tables, None, None, 0, None, record)
    attention, keys_BGCH = block.attn, rotate(record[0].normed, tables)
    last_BD = block.norm1(x_BCD[:, -1:])
    q_BN1H = rearrange(F.linear(last_BD, attention.query_weight), "b l (n h) -> b n l h", n=attention.heads)
    turned = rotate(attention.q_norm(q_BN1H), (tables[0][..., -1:, :], tables[1][..., -1:, :]))
    shared_BNCH = keys_BGCH.repeat_interleave(attention.heads // attention.kv_heads, 1)
    scores_BNC = (turned @ shared_BNCH.transpose(2, 3))[:, :, 0] / keys_BGCH.shape[-1] ** 0.5
    weight_BC = scores_BNC.float().softmax(-1).mean(dim=1)
    return out_BCD, weight_BC, ExternalKV(keys_BGCH, record[0].values, "rotated", append=True)


def _read_some(model: LanguageModel, tokens_BN: Tensor, chosen_BC: Tensor, length: int) -> Prompt:
    """Reads the chosen tokens alone, at their own positions."""
    x_BCD, tables, kept = model.embed(tokens_BN.gather(1, chosen_BC)), _tables(model, chosen_BC), list[ExternalKV]()
    for block in model.blocks:
        record: list[RecordedKV] = []
        x_BCD = block(x_BCD, tables, None, None, 0, None, record)
        kept.append(ExternalKV(rotate(record[0].normed, tables), record[0].values, "rotated", append=True))
    logits_BV = model.head(model.norm(x_BCD[:, -1:]))[:, 0]
    return PrunedPrompt(model, kept, length, logits_BV)
