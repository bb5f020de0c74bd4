"""A decoder-only language model whose blocks may all differ in heads and hidden width.

B samples, L tokens, T tokens of a window with its targets, D width, V vocabulary, H head width.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from avpretrain.config.reader import from_dict, to_dict
from avpretrain.config.schedules import Phase
from avpretrain.core.errors import UserError
from avpretrain.core.files import mistaken_for, read_head, read_json
from avpretrain.methods.openelm.config import LanguageModelShape
from avpretrain.nn.causal_stack import CausalStack
from avpretrain.nn.kv_cache import KVCache
from avpretrain.nn.next_token_loss import LOGITS_AT_ONCE, next_token_loss
from avpretrain.nn.weights import check_finite, compare, read_header

METHOD = "openelm"
"""Name under which its weights are registered."""


class TextModel(nn.Module, ABC):
    """What generating and measuring need of a model: `forward(tokens)` returns `nll` among others."""

    cfg: LanguageModelShape

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def logits(self, tokens_BL: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the token after each, [B, L, V]; with an empty cache at least of that after the last."""

    @abstractmethod
    def cache(self, capacity: int, batch_size: int = 1) -> KVCache:
        """An empty cache for so many tokens, where the weights are."""


class LanguageModel(CausalStack, TextModel):
    """Tokens to logits of the next token; input and output embeddings are one matrix.

    Args:
        z_loss: weight of the squared logarithm of the softmax's normaliser in `forward`.
        separator: token that begins each document, where tokens see those of their own document alone; none = all
            before them.
    """

    no_decay: ClassVar[tuple[str, ...]] = ()
    logits_at_once: int = LOGITS_AT_ONCE
    """Logits that `forward` holds at a time."""

    def __init__(self, cfg: LanguageModelShape, z_loss: float = 0.0, separator: int | None = None) -> None:
        super().__init__(
            cfg.vocabulary, cfg.width, cfg.head_width, cfg.heads, cfg.kv_heads, cfg.hidden, cfg.rope_base, separator
        )
        self.cfg, self.z_loss = cfg, z_loss
        self._initialise()

    def _initialise(self) -> None:
        """Zero-mean normal: fan-in^-1/2, embeddings D^-1/2, and what is added to the residual D^-1/2 (2 depth)^-1/2."""
        added = self.cfg.width**-0.5 * (2 * len(self.blocks)) ** -0.5
        nn.init.normal_(self.embed.weight, std=self.cfg.width**-0.5)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith(("attn.proj", "mlp.fc2"))
                nn.init.normal_(module.weight, std=added if residual else module.in_features**-0.5)

    def forward(self, tokens_BT: Int[Tensor, "b t"], phase: Phase | None = None) -> dict[str, Tensor]:
        """Losses of predicting each token of a window but the first from those before it, means over tokens.

        Returns:
            `loss`, which is minimised: `nll` (nats a token) plus the weighted `z_loss` (unweighted here).
        """
        hidden_ND = self.hidden(tokens_BT[:, :-1]).flatten(0, 1)
        loss, nll, z_loss = next_token_loss(
            hidden_ND, self.embed.weight, tokens_BT[:, 1:].flatten(), self.z_loss, self.logits_at_once
        )
        return {"loss": loss, "nll": nll, "z_loss": z_loss}

    def cache(self, capacity: int, batch_size: int = 1) -> KVCache:
        """An empty cache for so many tokens, where the weights are."""
        weight = self.embed.weight
        return KVCache(self.cfg.kv_heads, self.cfg.head_width, capacity, batch_size, weight.device, weight.dtype)

    @classmethod
    def from_pretrained(cls, folder: Path) -> LanguageModel:
        """The model in a folder with `model.safetensors` and `config.json`, on the CPU, in evaluation mode.

        Raises:
            UserError: a file is missing or damaged, the weights do not fit their config, or one is not finite.
        """
        cfg = read_shape(folder / "config.json")
        with torch.device("meta"):
            model = cls(cfg)
        fill(model, folder / "model.safetensors")
        return model.eval()


def fill(model: nn.Module, weights: Path) -> None:
    """Gives a model that is on the meta device its weights, on the CPU in float32.

    Raises:
        UserError: the file is missing or damaged, it does not fit the model, or a weight is not finite.
    """
    if weights.is_file() and (mistaken := mistaken_for(read_head(weights))):
        raise UserError(f"{weights} {mistaken}")
    compare({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, read_header(weights), weights)
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights} is damaged: {str(error)[:200]}") from None
    check_finite(state, weights)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)


def read_shape(path: Path) -> LanguageModelShape:
    """The shape of a model from its `config.json`.

    Raises:
        UserError: there is none, it is impossible, or it is of another kind of model.
    """
    values = read_json(path, "model config")
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        raise UserError(
            f"model config {path} is not of one of this package's models; one in the Hugging Face layout of OpenELM is "
            "taken in by: avpretrain import CKPT OUT --format openelm"
        )
    method = str(values.get("method", "diffmavil"))[:60]
    if method != METHOD:
        raise UserError(f"{path} is of a model of method {method}, which is no language model; name weights of one")
    try:
        return from_dict(LanguageModelShape, values["config"], "model.")
    except (UserError, TypeError) as error:
        raise UserError(f"model config {path}: {error}") from None


def config_json(cfg: LanguageModelShape) -> str:
    """The text of a model's `config.json`."""
    return json.dumps({"method": METHOD, "config": to_dict(cfg)}, indent=2) + "\n"


def save_pretrained(model: LanguageModel, folder: Path) -> None:
    """Writes `model.safetensors` and `config.json` into a folder that is there."""
    save_model(model, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(config_json(model.cfg))


def parameters(cfg: LanguageModelShape) -> int:
    """Of the whole model, counted on the modules themselves."""
    with torch.device("meta"):
        return sum(p.numel() for p in LanguageModel(cfg).parameters())


def perplexity(nll: float) -> float:
    """Of a mean negative log-likelihood in nats a token."""
    return math.exp(min(nll, 700.0))
