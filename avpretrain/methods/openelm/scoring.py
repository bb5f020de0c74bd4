"""How likely a language model finds given continuations of given texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from avpretrain.core.errors import UserError
from avpretrain.methods.openelm.model import LanguageModel

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens that are given, at least one, and tokens that are predicted after them."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one continuation."""

    log_probability: float
    """Nats, summed over its tokens."""
    greedy: bool
    """Whether each of its tokens is the likeliest one at its place."""


@torch.no_grad()
def likelihoods(model: LanguageModel, pairs: Sequence[Pair], batch_size: int = 16) -> list[Likelihood]:
    """Scores each continuation, in the order of `pairs`; of what is given, only what fits into the context counts.

    Args:
        model: where it is; in evaluation mode, without a mask of documents.
        batch_size: continuations at a time, those of like length together; changes nothing but speed.

    Raises:
        UserError: a continuation is longer than the context.
    """
    found: list[Likelihood] = [Likelihood(0.0, True)] * len(pairs)
    context, device = model.cfg.context, model.embed.weight.device
    rows: list[tuple[int, list[int], list[int]]] = []
    for number, (given, continuation) in enumerate(pairs):
        if len(continuation) > context:
            raise UserError(f"a continuation of {len(continuation)} tokens does not fit the model's context {context}")
        if len(continuation):
            whole = [*given, *continuation]
            rows.append((number, whole[:-1][-context:], list(continuation)))
    rows.sort(key=lambda row: -len(row[1]))
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        longest = len(batch[0][1])  # padding stands behind all that is read, where causal attention never looks
        tokens_BL = torch.tensor([inputs + [0] * (longest - len(inputs)) for _, inputs, _ in batch], device=device)
        hidden_BLD = model.hidden(tokens_BL)
        for row_LD, (number, inputs, targets) in zip(hidden_BLD, batch, strict=True):
            last_TD = row_LD[len(inputs) - len(targets) : len(inputs)]
            logits_TV = F.linear(last_TD, model.embed.weight).float()
            target_T = torch.tensor(targets, device=device)
            total = -F.cross_entropy(logits_TV, target_T, reduction="sum").item()
            found[number] = Likelihood(total, bool((logits_TV.argmax(-1) == target_T).all()))
    return found


def windows(tokens: Sequence[int], begins: int, context: int) -> Iterator[Pair]:
    """Pairs in which each token of a text is predicted once, from as many tokens before it as the context holds.

    Args:
        begins: token that is given before the first.
        context: tokens that the model sees at a time.
    """
    padded = [begins, *tokens]
    for start in range(0, len(tokens), context):
        end = min(start + context, len(tokens))  # predicts padded[start + 1 : end + 1]
        yield padded[max(0, end - context) : start + 1], padded[start + 1 : end + 1]
