"""What can be configured of KV prediction: the auxiliary model, the map of layers, the losses. Nothing needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from avpretrain.config.model import require
from avpretrain.config.train import MECHANICS, EngineConfig, LengthConfig, OptimConfig, RunConfig
from avpretrain.methods.kv_prediction.layers import SHARES, canonical_map, kept_layers, pruned_map, pruned_shape
from avpretrain.methods.openelm.config import LanguageModelConfig, LanguageModelShape, TextConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class KVPredictorShape:
    """What a model is built from, as it lies beside its weights."""

    auxiliary: LanguageModelShape
    """Reads the prompt."""
    base: LanguageModelShape
    """Answers."""
    layer_map: tuple[int, ...]
    """For each base layer, the auxiliary layer from whose keys and values its own are predicted."""

    def __post_init__(self) -> None:
        layers, fed = len(self.auxiliary.heads), len(self.base.heads)
        require(len(self.layer_map) == fed, f"layer_map has {len(self.layer_map)} entries; the base has {fed} layers")
        for layer in self.layer_map:
            require(0 <= layer < layers, f"layer_map names layer {layer}; the auxiliary model has 0 to {layers - 1}")
        same = self.auxiliary.vocabulary == self.base.vocabulary
        require(
            same,
            f"auxiliary and base must share a vocabulary, got {self.auxiliary.vocabulary} and {self.base.vocabulary}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxiliaryConfig:
    """The model that reads the prompt."""

    kind: Literal["layer_pruned", "canonical"] = "layer_pruned"
    """layer_pruned: a copy of the base that keeps some of its layers; canonical: a smaller model of its own."""
    keep: float = 0.5
    """Share of the base's layers that a pruned copy keeps: 0.25, 0.5 or 0.75."""
    init: str = ""
    """Run folder, checkpoint or model whose weights it starts from, and whose sizes it has. Empty = a pruned copy
    starts from the base's layers, a canonical model afresh."""
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    """Sizes of a canonical model without `init`; vocabulary and context are the base's."""

    def __post_init__(self) -> None:
        require(self.keep in SHARES, f"keep must be 0.25, 0.5 or 0.75, got {self.keep:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights of the terms that are minimised."""

    base: float = 1.0
    """Of the base's cross-entropy over the predicted cache."""
    auxiliary: float = 1.0
    """Of the auxiliary model's own cross-entropy."""
    cache: float | None = None
    """Of the distance (L1, summed over layers) of the predicted cache to the base's own; none = one over the number of
    base layers."""

    def __post_init__(self) -> None:
        for name in ("base", "auxiliary", "cache"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name} must not be negative, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class KVPredictionConfig(EngineConfig):
    """Everything a training run of KV prediction is made of."""

    method: str = "kv_prediction"
    base: str = ""
    """Run folder, checkpoint or model of the language model that answers; it stays as it is, and its sizes take the
    place of `model`."""
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    """Sizes of the base, to count costs before there is one."""
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    layer_map: tuple[int, ...] = ()
    """For each base layer, the auxiliary layer that feeds it; empty = by the rule of `auxiliary.kind`."""
    loss: LossConfig = field(default_factory=LossConfig)
    z_loss: float = 1e-4
    """Weight, in both cross-entropies, of the squared logarithm of the softmax's normaliser."""
    shuffle_positions: bool = False
    """A negative control: predictions are trained from caches whose positions were shuffled."""
    schedule: LengthConfig = field(default_factory=LengthConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: TextConfig = field(default_factory=TextConfig)
    run: RunConfig = field(default_factory=RunConfig, metadata={MECHANICS: True})

    def __post_init__(self) -> None:
        require(self.z_loss >= 0, f"z_loss must not be negative, got {self.z_loss}")

    def shape(self, auxiliary: LanguageModelShape | None = None) -> KVPredictorShape:
        """What the model is built from.

        Args:
            auxiliary: what `auxiliary.init` holds; none = what the config says.

        Raises:
            ValueError: the two models do not go together.
        """
        base = self.model.shape(self.model.vocabulary or self.data.vocabulary)
        depth, pruned = len(base.heads), self.auxiliary.kind == "layer_pruned"
        kept = kept_layers(depth, self.auxiliary.keep)
        if auxiliary is None:
            own = self.auxiliary.model.shape(base.vocabulary)
            auxiliary = pruned_shape(base, kept) if pruned else own
        layer_map = self.layer_map or (
            pruned_map(depth, kept) if pruned else canonical_map(len(auxiliary.heads), depth)
        )
        return KVPredictorShape(auxiliary=auxiliary, base=base, layer_map=layer_map)
