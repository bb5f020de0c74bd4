"""What a language model makes of text that it was not trained on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from avpretrain.core.errors import UserError
from avpretrain.data.text.tokens import TokenStream
from avpretrain.methods.openelm.model import TextModel, perplexity


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Of one model on one text."""

    nll: float
    """Nats a token, mean."""
    tokens: int
    """That were predicted."""
    text_bytes: float
    """UTF-8 bytes that they stand for; of a part of a split by its mean bytes a token."""
    whole: bool
    """Whether it is the whole split."""

    @property
    def perplexity(self) -> float:
        """Of a token: comparable between models with the same tokenizer alone."""
        return perplexity(self.nll)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers; marks between documents are predicted, too, and count in the numerator."""
        return self.nll * self.tokens / math.log(2) / self.text_bytes

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types, with what follows from the fields."""
        return {**asdict(self), "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> HeldOut:
        """The inverse of `to_json`."""
        return cls(**{name: values[name] for name in cls.__slots__})


@torch.no_grad()
def measure(
    model: TextModel, stream: TokenStream, windows: int = 0, batch_size: int = 16, context: int | None = None
) -> HeldOut:
    """Predicts each token once, from those before it in its window; windows do not overlap.

    Args:
        model: where it is; left in the mode that it is in.
        windows: from the beginning of the stream; 0 = all, a shorter last one included.
        context: tokens of a window; none = the model's.

    Raises:
        UserError: the stream is shorter than two tokens, or holds tokens that the model does not know.
    """
    context, device = context or model.cfg.context, model.device
    if len(stream) < 2:
        raise UserError(f"split '{stream.split}' holds {len(stream)} tokens, too few to predict one")
    starts = list(range(0, len(stream) - 1, context))
    chosen = starts[:windows] if windows else starts
    total, count = 0.0, 0
    for first in range(0, len(chosen), batch_size):
        rows = [stream.read(s, min(context + 1, len(stream) - s)) for s in chosen[first : first + batch_size]]
        for size in sorted({len(row) for row in rows}, reverse=True):
            tokens_BT = torch.from_numpy(np.stack([row for row in rows if len(row) == size])).to(device)
            if int(tokens_BT.max()) >= model.cfg.vocabulary:
                raise UserError(
                    f"split '{stream.split}' holds token {int(tokens_BT.max())}, but the model's vocabulary is "
                    f"{model.cfg.vocabulary}; pack the text with the model's own tokenizer"
                )
            predicted = tokens_BT[:, 1:].numel()
            total += float(model(tokens_BT)["nll"]) * predicted
            count += predicted
    whole = len(chosen) == len(starts)
    return HeldOut(
        nll=total / count, tokens=count, text_bytes=stream.text_bytes * count / (len(stream) - 1), whole=whole
    )
