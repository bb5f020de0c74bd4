"""Text from a language model, a token at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from avpretrain.core.errors import UsageError
from avpretrain.methods.openelm.model import TextModel


@torch.no_grad()
def generate(
    model: TextModel,
    prompt: Sequence[int],
    count: int,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    ends: Collection[int] = (),
) -> Iterator[int]:
    """Yields up to `count` tokens after a prompt; stops before a token of `ends`, and where the context is full.

    Args:
        temperature: logits are divided by it; 0 = always the likeliest token.
        top_k: drawn from so many of the likeliest tokens; 0 = from all.
        seed: of the draws; the same for the same seed on the same device.

    Raises:
        UsageError: the prompt is empty or does not fit into the context.
    """
    context, device = model.cfg.context, model.device
    if not prompt or len(prompt) >= context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens; the model takes 1 to {context - 1} and goes on to {context}"
        )
    capacity = min(context, len(prompt) + count)
    cache, draws = model.cache(capacity), torch.Generator().manual_seed(seed)
    tokens_BL = torch.tensor([list(prompt)], device=device)
    for _ in range(capacity - len(prompt)):
        token = _draw(model.logits(tokens_BL, cache)[0, -1].float().cpu(), temperature, top_k, draws)
        if token in ends:
            return
        yield token
        tokens_BL = torch.tensor([[token]], device=device)


def _draw(logits_V: Tensor, temperature: float, top_k: int, draws: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if 0 < top_k < len(logits_V):
        least = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    return int(torch.multinomial((logits_V / temperature).softmax(0), 1, generator=draws))
