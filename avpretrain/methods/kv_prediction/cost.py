"""What reading a prompt costs: by parameters, as the paper counts, and with the predictor and the base's step."""

from __future__ import annotations

from dataclasses import dataclass

from avpretrain.cost.count import on_meta
from avpretrain.methods.kv_prediction.config import KVPredictorShape
from avpretrain.methods.kv_prediction.model import KVPredictor


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptCost:
    """Parameters of the three parts, tied embeddings once; a token costs about two operations a parameter."""

    auxiliary: int
    predictor: int
    base: int

    @property
    def reduction(self) -> float:
        """The base's cost of a token over the auxiliary model's: what the paper calls FLOPs reduction."""
        return self.base / self.auxiliary

    def first_token_flops(self, tokens: int) -> int:
        """Of reading a prompt of so many tokens and giving the next: all by the auxiliary model and the predictor, the
        last also by the base."""
        return 2 * (tokens * (self.auxiliary + self.predictor) + self.base)

    def reduction_at(self, tokens: int) -> float:
        """How many times as much the base alone would cost at a prompt of so many tokens, all parts counted."""
        return 2 * tokens * self.base / self.first_token_flops(tokens)


def prompt_cost(shape: KVPredictorShape) -> PromptCost:
    """Counted on the modules themselves, without memory for them."""
    model = on_meta(lambda: KVPredictor.of_shape(shape))
    parts = (getattr(model, name) for name in ("auxiliary", "predictor", "base"))
    auxiliary, predictor, base = (sum(p.numel() for p in part.parameters()) for part in parts)
    return PromptCost(auxiliary=auxiliary, predictor=predictor, base=base)
