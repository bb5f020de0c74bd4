"""An auxiliary language model, a frozen base, and linear maps from the one's keys and values to the other's.

What is predicted has no positions: keys are taken before the auxiliary model's norm, mapped, normalised by the base,
and then turned by their positions.

B samples, L tokens, T tokens of a window with its targets, N tokens of a prompt, G key and value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from avpretrain.config.reader import from_dict
from avpretrain.config.schedules import Phase
from avpretrain.core.errors import UserError
from avpretrain.core.files import read_json
from avpretrain.methods.kv_prediction.config import KVPredictorShape, LossConfig
from avpretrain.methods.openelm.model import LanguageModel, TextModel, fill
from avpretrain.nn.causal_block import CausalBlock
from avpretrain.nn.external_kv import ExternalKV, RecordedKV
from avpretrain.nn.kv_cache import KVCache
from avpretrain.nn.rotary import rotary_tables

METHOD = "kv_prediction"
"""Name under which its weights are registered."""


class CachePredictor(nn.Module):
    """One biased linear map for the keys of each base layer and one for its values, heads merged.

    Args:
        inputs: width of all key heads together in the auxiliary layer that feeds each base layer.
        kv_heads: of each base layer.
        head_width: of the base.
    """

    def __init__(self, inputs: Sequence[int], kv_heads: Sequence[int], head_width: int) -> None:
        super().__init__()
        sizes = [(width, heads * head_width) for width, heads in zip(inputs, kv_heads, strict=True)]
        self.kv_heads = tuple(kv_heads)
        self.keys = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.values = nn.ModuleList(nn.Linear(*size) for size in sizes)
        for module in (*self.keys, *self.values):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)

    def forward(self, caches: Sequence[tuple[Tensor, Tensor]]) -> list[ExternalKV]:
        """Keys, before the base's norm, and values of each base layer, [B, G, L, H] each.

        Args:
            caches: keys before their norm and values of the auxiliary layer that feeds each.
        """
        merged = "b g l h -> b l (g h)"
        predicted = []
        for i, (k_BGLH, v_BGLH) in enumerate(caches):
            keys, values = self.keys[i](rearrange(k_BGLH, merged)), self.values[i](rearrange(v_BGLH, merged))
            parts = (rearrange(x, "b l (g h) -> b g l h", g=self.kv_heads[i]) for x in (keys, values))
            predicted.append(ExternalKV(*parts))
        return predicted

    @torch.no_grad()
    def set_identity(self) -> None:
        """Makes every map hand on what it is given; needs equal widths."""
        for module in (*self.keys, *self.values):
            nn.init.eye_(module.weight)
            nn.init.zeros_(module.bias)


class KVPredictor(TextModel):
    """Predicts the base's cache of a prompt from the auxiliary model's; the base is frozen.

    Args:
        auxiliary: reads the prompt; it is trained.
        base: answers.
        layer_map: for each base layer, the auxiliary layer that feeds it.
        weights: of the losses.
        z_loss: weight of the squared logarithm of the softmax's normaliser in both cross-entropies.
        shuffle: train on caches of the auxiliary model whose positions are shuffled, as a negative control.
    """

    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        auxiliary: LanguageModel,
        base: LanguageModel,
        layer_map: Sequence[int],
        weights: LossConfig | None = None,
        z_loss: float = 0.0,
        shuffle: bool = False,
    ) -> None:
        super().__init__()
        self.shape = KVPredictorShape(auxiliary=auxiliary.cfg, base=base.cfg, layer_map=tuple(layer_map))
        self.cfg = base.cfg
        self.auxiliary, self.base = auxiliary, base.requires_grad_(False)
        small, large = auxiliary.cfg, base.cfg
        inputs = [small.kv_heads[layer] * small.head_width for layer in layer_map]
        self.predictor = CachePredictor(inputs, large.kv_heads, large.head_width)
        self.weights, self.z_loss = weights or LossConfig(), z_loss
        if shuffle:
            draws = torch.rand(large.context, generator=torch.Generator().manual_seed(0))
            self._draws_C: Tensor
            self.register_buffer("_draws_C", draws, persistent=False)
        self.shuffle = shuffle

    def forward(self, tokens_BT: Int[Tensor, "b t"], phase: Phase | None = None) -> dict[str, Tensor]:
        """Losses of predicting each token of a window but the first, means over tokens.

        Returns:
            `loss`, which is minimised; `nll` (nats a token) of the base over the predicted cache, `auxiliary_nll` of
            the auxiliary model, and in training mode `cache_l1`, the distance to the base's own cache, summed over
            layers; in evaluation mode it is left out, of `loss` too.
        """
        inputs_BL, targets_BL = tokens_BT[:, :-1], tokens_BT[:, 1:]
        read: list[RecordedKV] = []
        small = cross_entropy(self.auxiliary.head(self.auxiliary.hidden(inputs_BL, record=read)), targets_BL)
        used: list[RecordedKV] = []
        hidden_BLD = self.base.hidden(inputs_BL, external=self._predict(read), record=used)
        large = cross_entropy(self.base.head(hidden_BLD), targets_BL)
        weights, z_loss = self.weights, self.z_loss
        loss = weights.base * (large[0] + z_loss * large[1]) + weights.auxiliary * (small[0] + z_loss * small[1])
        losses = {"nll": large[0].detach(), "auxiliary_nll": small[0].detach()}
        if self.training:
            wanted: list[RecordedKV] = []
            with torch.no_grad():
                self.base.hidden(inputs_BL, record=wanted)
            distance = cache_distance(used, wanted)
            loss = loss + (1 / len(used) if weights.cache is None else weights.cache) * distance
            losses["cache_l1"] = distance.detach()
        return {"loss": loss, **losses}

    def _predict(self, read: Sequence[RecordedKV]) -> list[ExternalKV]:
        caches = [(kv.raw, kv.values) for kv in read]
        if self.shuffle and self.training:
            order_L = self._draws_C[: caches[0][0].shape[2]].argsort()
            caches = [(k_BGLH[:, :, order_L], v_BGLH[:, :, order_L]) for k_BGLH, v_BGLH in caches]
        return self.predictor([caches[layer] for layer in self.shape.layer_map])

    # --- inference ---------------------------------------------------------------------------------------------------

    def logits(self, tokens_BL: Int[Tensor, "b l"], cache: KVCache | None = None) -> Float[Tensor, "b m v"]:
        """Logits of the token after each, or with an empty cache of the token after the last one alone.

        Without a cache every logit is the base's over predicted keys and values, its own token's included, as in
        training: the path of likelihoods. With a cache the first call is the prompt (see `prefill`); from the next on
        the base goes on alone.

        Args:
            cache: the base's, as `cache` makes it.
        """
        if cache is None:
            read: list[RecordedKV] = []
            self.auxiliary.hidden(tokens_BL, record=read)
            return self.base.head(self.base.hidden(tokens_BL, external=self._predict(read)))
        if cache.length:
            return self.base.logits(tokens_BL, cache)
        return self.prefill(tokens_BL, cache)

    def prefill(self, tokens_BN: Int[Tensor, "b n"], cache: KVCache) -> Float[Tensor, "b 1 v"]:
        """Reads a prompt: all but its last token by the auxiliary model, that one by the base.

        Args:
            cache: empty; takes up predicted keys and values, and the base's own of the last token.
        """
        if tokens_BN.shape[1] > 1:
            self.fill_cache(self.read(tokens_BN[:, :-1]), cache)
        return self.base.logits(tokens_BN[:, -1:], cache)

    def read(self, tokens_BL: Int[Tensor, "b l"]) -> list[tuple[Tensor, Tensor]]:
        """Keys before their norm and values of the auxiliary layers that feed any; nothing after the last is run."""
        last = max(self.shape.layer_map)
        positions_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        tables = rotary_tables(positions_L, self.auxiliary.cfg.head_width, self.auxiliary.cfg.rope_base)
        allowed, record = self.auxiliary.allowed(tokens_BL, 0), list[RecordedKV]()
        x_BLD = self.auxiliary.embed(tokens_BL)
        for i in range(last):
            x_BLD = self.auxiliary.blocks[i](x_BLD, tables, allowed, None, i, None, record)
        block = cast(CausalBlock, self.auxiliary.blocks[last])
        return [*((kv.raw, kv.values) for kv in record), block.attn.keys_values(block.norm1(x_BLD))]

    def fill_cache(self, read: Sequence[tuple[Tensor, Tensor]], cache: KVCache) -> None:
        """Predicts the base's cache from what `read` gives."""
        count = read[0][0].shape[2]
        positions_L = torch.arange(cache.length, cache.length + count, device=read[0][0].device)
        tables = rotary_tables(positions_L, self.base.cfg.head_width, self.base.cfg.rope_base)
        predicted = self.predictor([read[layer] for layer in self.shape.layer_map])
        for i, (block, external) in enumerate(zip(self.base.blocks, predicted, strict=True)):
            cache.extend(i, cast(CausalBlock, block).attn.turned(external, tables), external.values)
        cache.advance(count)

    def cache(self, capacity: int, batch_size: int = 1) -> KVCache:
        """An empty cache of the base for so many tokens."""
        return self.base.cache(capacity, batch_size)

    @classmethod
    def of_shape(cls, shape: KVPredictorShape) -> KVPredictor:
        """A fresh model."""
        return cls(LanguageModel(shape.auxiliary), LanguageModel(shape.base), shape.layer_map)

    @classmethod
    def from_pretrained(cls, folder: Path) -> KVPredictor:
        """The model in a folder with `model.safetensors` and `config.json`, on the CPU, in evaluation mode.

        Raises:
            UserError: a file is missing or damaged, the weights do not fit their config, or one is not finite.
        """
        shape = read_shape(folder / "config.json")
        with torch.device("meta"):
            model = cls.of_shape(shape)
        fill(model, folder / "model.safetensors")
        model.base.requires_grad_(False)
        return model.eval()


def cross_entropy(logits_BLV: Tensor, targets_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Mean negative log-likelihood in nats, and mean squared logarithm of the softmax's normaliser."""
    logits_BLV = logits_BLV.float()
    normaliser_BL = logits_BLV.logsumexp(dim=-1)
    target_BL = logits_BLV.gather(-1, targets_BL[..., None])[..., 0]
    return (normaliser_BL - target_BL).mean(), normaliser_BL.square().mean()


def cache_distance(predicted: Sequence[RecordedKV], wanted: Sequence[RecordedKV]) -> Tensor:
    """Mean absolute error of keys after the base's norm plus that of values, summed over layers."""
    return sum(
        (
            F.l1_loss(ours.normed.float(), theirs.normed.float())
            + F.l1_loss(ours.values.float(), theirs.values.float())
            for ours, theirs in zip(predicted, wanted, strict=True)
        ),
        start=torch.zeros((), device=predicted[0].values.device),
    )


@torch.no_grad()
def keep_layers(model: LanguageModel, kept: Sequence[int], pruned: LanguageModel) -> LanguageModel:
    """Copies embeddings, last norm and these layers of a model into one that has as many."""
    pruned.embed.load_state_dict(model.embed.state_dict())
    pruned.norm.load_state_dict(model.norm.state_dict())
    for ours, layer in zip(pruned.blocks, kept, strict=True):
        ours.load_state_dict(model.blocks[layer].state_dict())
    return pruned


def read_shape(path: Path) -> KVPredictorShape:
    """The shape of a model from its `config.json`.

    Raises:
        UserError: there is none, it is impossible, or it is of another kind of model.
    """
    values = read_json(path, "model config")
    method = values.get("method") if isinstance(values, dict) else None
    if not isinstance(values, dict) or method != METHOD or not isinstance(values.get("config"), dict):
        raise UserError(f"{path} is of no model with a predicted cache; name one that method {METHOD} trained")
    try:
        return from_dict(KVPredictorShape, values["config"], "model.")
    except (UserError, TypeError) as error:
        raise UserError(f"model config {path}: {error}") from None
