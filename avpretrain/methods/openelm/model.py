"""A decoder-only language model whose blocks may all differ in heads and hidden width.

B samples, L tokens, T tokens of a window with its targets, D width, V vocabulary, H head width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from avpretrain.config.reader import from_dict, to_dict
from avpretrain.config.schedules import Phase
from avpretrain.core.errors import UserError
from avpretrain.core.files import mistaken_for, read_head, read_json
from avpretrain.methods.openelm.config import LanguageModelShape
from avpretrain.nn.causal_block import CausalBlock
from avpretrain.nn.external_kv import ExternalKV, RecordedKV
from avpretrain.nn.kv_cache import KVCache
from avpretrain.nn.rms_norm import RMSNorm
from avpretrain.nn.rotary import rotary_tables
from avpretrain.nn.weights import check_finite, compare, read_header

METHOD = "openelm"
"""Name under which its weights are registered."""


class TextModel(nn.Module):
    """What generating and measuring need of a model: `forward(tokens)` returns `nll` among others."""

    cfg: LanguageModelShape

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def logits(self, tokens_BL: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the token after each, [B, L, V]; with an empty cache at least of that after the last."""
        raise NotImplementedError

    def cache(self, capacity: int, batch_size: int = 1) -> KVCache:
        """An empty cache for so many tokens, where the weights are."""
        raise NotImplementedError


class LanguageModel(TextModel):
    """Tokens to logits of the next token; input and output embeddings are one matrix.

    Args:
        z_loss: weight of the squared logarithm of the softmax's normaliser in `forward`.
        separator: token that begins each document, where tokens see those of their own document alone; none = all
            before them.
    """

    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cfg: LanguageModelShape, z_loss: float = 0.0, separator: int | None = None) -> None:
        super().__init__()
        self.cfg, self.z_loss, self.separator = cfg, z_loss, separator
        self.embed = nn.Embedding(cfg.vocabulary, cfg.width)
        self.blocks = nn.ModuleList(
            CausalBlock(cfg.width, heads, kv_heads, cfg.head_width, hidden)
            for heads, kv_heads, hidden in zip(cfg.heads, cfg.kv_heads, cfg.hidden, strict=True)
        )
        self.norm = RMSNorm(cfg.width)
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
        logits_BLV = self.logits(tokens_BT[:, :-1]).float()
        normaliser_BL = logits_BLV.logsumexp(dim=-1)
        target_BL = logits_BLV.gather(-1, tokens_BT[:, 1:, None])[..., 0]
        nll, z_loss = (normaliser_BL - target_BL).mean(), normaliser_BL.square().mean()
        return {"loss": nll + self.z_loss * z_loss, "nll": nll.detach(), "z_loss": z_loss.detach()}

    def logits(self, tokens_BL: Int[Tensor, "b l"], cache: KVCache | None = None) -> Float[Tensor, "b l v"]:
        """Logits of the token after each.

        Args:
            cache: holds the tokens before these, and takes these up.
        """
        return self.head(self.hidden(tokens_BL, cache))

    def head(self, x_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "b l v"]:
        """Logits from what `hidden` gives."""
        return F.linear(x_BLD, self.embed.weight)

    def hidden(
        self,
        tokens_BL: Int[Tensor, "b l"],
        cache: KVCache | None = None,
        external: Sequence[ExternalKV] | None = None,
        record: list[RecordedKV] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Tokens after the last block and its norm.

        Args:
            cache: holds the tokens before these, and takes these up.
            external: for each block, keys and values that replace the tokens' own.
            record: takes up the keys and values of each block.
        """
        start, count = 0 if cache is None else cache.length, tokens_BL.shape[1]
        positions_L = torch.arange(start, start + count, device=tokens_BL.device)
        tables = rotary_tables(positions_L, self.cfg.head_width, self.cfg.rope_base)
        allowed = self.allowed(tokens_BL, start)
        x_BLD = self.embed(tokens_BL)
        for i, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, tables, allowed, cache, i, external[i] if external else None, record)
        if cache is not None:
            cache.advance(count)
        return self.norm(x_BLD)

    def allowed(self, tokens_BL: Tensor, start: int) -> Tensor | None:
        """Which token sees which, where plain causality does not say it."""
        count, device = tokens_BL.shape[1], tokens_BL.device
        if start and count > 1:
            rows_L1 = torch.arange(start, start + count, device=device)[:, None]
            return (torch.arange(start + count, device=device) <= rows_L1)[None, None]
        if self.separator is None or start:
            return None
        document_BL = (tokens_BL == self.separator).cumsum(dim=1)
        same_BLL = document_BL[:, :, None] == document_BL[:, None, :]
        return same_BLL.tril()[:, None]

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
