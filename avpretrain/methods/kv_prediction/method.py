"""KV prediction as a method that the engine trains: a frozen base is handed in, the auxiliary model and maps learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from avpretrain.config.schedules import Phase, Step
from avpretrain.core.errors import UsageError
from avpretrain.data.text.tokenizer import find_tokenizer, load_tokenizer
from avpretrain.data.text.tokens import is_token_set
from avpretrain.methods.kv_prediction.config import KVPredictionConfig, KVPredictorShape
from avpretrain.methods.kv_prediction.layers import kept_layers
from avpretrain.methods.kv_prediction.model import KVPredictor, keep_layers
from avpretrain.methods.openelm.config import LanguageModelConfig, LanguageModelShape
from avpretrain.methods.openelm.held_out import measure
from avpretrain.methods.openelm.method import OpenELM
from avpretrain.methods.openelm.model import LanguageModel, read_shape
from avpretrain.training.folders import CONFIG, find_weights
from avpretrain.training.method import Method, Preview


class KVPrediction(OpenELM):
    """Text, windows and held-out measurements as of a language model; perplexity is over predicted caches."""

    cfg: KVPredictionConfig  # type: ignore[assignment]  # has the sections of a language model's that are used
    config = KVPredictionConfig  # type: ignore[assignment]
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "bits_per_byte": "min", "nll": "min", "auxiliary_nll": "min",
    }  # fmt: skip
    shown: ClassVar[Mapping[str, str]] = {"nll": "nll", "cache_l1": "cache"}
    _auxiliary: LanguageModelShape | None = None

    def open(self) -> Sequence[str]:
        """Reads the sizes of the base, and opens text as the base's tokenizer packs it."""
        cfg = self.cfg
        if not cfg.base:
            raise UsageError("no base: give --base RUN (a run folder, checkpoint or model of a language model)")
        folder = find_weights(cfg.base)
        shape, place = read_shape(folder / CONFIG), find_tokenizer(folder)
        self.cfg = dataclasses.replace(cfg, model=as_config(shape))
        if cfg.auxiliary.init:
            self._auxiliary = read_shape(find_weights(cfg.auxiliary.init) / CONFIG)
        try:
            shapes = self.model_config
        except ValueError as error:
            raise UsageError(f"config: {error}") from None
        if self._auxiliary is not None and cfg.auxiliary.kind == "layer_pruned":
            kept = len(kept_layers(len(shape.heads), cfg.auxiliary.keep))
            if len(shapes.auxiliary.heads) != kept:
                raise UsageError(
                    f"auxiliary.init {cfg.auxiliary.init} has {len(shapes.auxiliary.heads)} layers; a copy that keeps "
                    f"{cfg.auxiliary.keep:g} of the base's has {kept}"
                )
        if not cfg.data.tokenizer and not all(is_token_set(path) for path in cfg.data.shards):
            self.cfg = dataclasses.replace(self.cfg, data=dataclasses.replace(cfg.data, tokenizer=str(place)))
        warnings = super().open()
        assert self._tokenizer is not None
        if self._tokenizer.sha256 != load_tokenizer(place).sha256:
            raise UsageError(
                "the data were packed by another tokenizer than the base's; name the text, or pack it anew"
            )
        return warnings

    def model(self) -> KVPredictor:  # type: ignore[override]
        """A fresh one; `initialise` gives it the base's weights, on a fresh run."""
        shape, cfg = self.model_config, self.cfg
        separator = None if self._tokenizer is None else self._tokenizer.separator
        separator = (separator or 0) if cfg.data.mask_documents else None
        auxiliary, base = (LanguageModel(each, 0.0, separator) for each in (shape.auxiliary, shape.base))
        return KVPredictor(auxiliary, base, shape.layer_map, cfg.loss, cfg.z_loss, cfg.shuffle_positions)

    def check(self, steps: Sequence[Step]) -> None:
        """`open` saw to the base and to what the auxiliary model starts from."""

    def initialise(self, model: nn.Module) -> None:
        """Copies the base's weights, and those that the auxiliary model starts from."""
        assert isinstance(model, KVPredictor)
        base, auxiliary = LanguageModel.from_pretrained(find_weights(self.cfg.base)), self.cfg.auxiliary
        model.base.load_state_dict(base.state_dict())
        if auxiliary.init:
            there = LanguageModel.from_pretrained(find_weights(auxiliary.init))
            model.auxiliary.load_state_dict(there.state_dict())
        elif auxiliary.kind == "layer_pruned":
            keep_layers(base, kept_layers(len(base.blocks), auxiliary.keep), model.auxiliary)

    def example(self, phase: Phase, batch_size: int, device: torch.device) -> Tensor:
        """Tokens of noise."""
        base = self.model_config.base
        return torch.randint(base.vocabulary, (batch_size, base.context + 1), device=device)

    def measure(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The training text's, nats a token."""
        return {name: losses[name] for name in ("nll", "auxiliary_nll")}

    def preview(self, model: nn.Module, step: Step) -> Preview | None:
        """Measures the base over predicted caches on the held-out split, and logs it."""
        if self._held_out is None:
            return None
        assert isinstance(model, KVPredictor)
        training = model.training
        model.eval()
        try:
            found = measure(model, self._held_out, self.cfg.data.held_out_windows)
            alone = measure(model.auxiliary, self._held_out, self.cfg.data.held_out_windows)
        finally:
            model.train(training)
        seen = step.seen + step.batch_size
        self._log_held_out(seen, {**found.to_json(), "auxiliary_nll": alone.nll})
        line = (
            f"held out: perplexity {found.perplexity:.3f}, {found.bits_per_byte:.4f} bits per byte at {seen} windows; "
            f"auxiliary model alone {alone.perplexity:.3f}"
        )
        return Preview(line, {"bits_per_byte": found.bits_per_byte})

    @property
    def model_config(self) -> KVPredictorShape:  # type: ignore[override]
        """What the model is built from."""
        return self.cfg.shape(self._auxiliary)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The trained model, base included, with the tokenizer beside it."""
        Method.save(self, model, folder)
        self._write_tokenizer(folder)


def as_config(shape: LanguageModelShape) -> LanguageModelConfig:
    """The config of a model of this shape, lists written out."""
    return LanguageModelConfig(
        **{field.name: getattr(shape, field.name) for field in dataclasses.fields(shape)}, depth=len(shape.heads)
    )
