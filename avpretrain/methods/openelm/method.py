"""A language model as a method that the engine trains: packed text, the order of windows, held-out perplexity."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import Tensor, nn

from avpretrain.config.schedules import Phase, Step
from avpretrain.core.errors import UsageError
from avpretrain.core.terminal import say
from avpretrain.data.text.order import WindowOrder
from avpretrain.data.text.tokenizer import Tokenizer, load_tokenizer
from avpretrain.data.text.tokens import TokenStream, is_token_set
from avpretrain.data.write.cached_text import as_tokens
from avpretrain.methods.openelm.config import LanguageModelShape, OpenELMConfig
from avpretrain.methods.openelm.held_out import measure
from avpretrain.methods.openelm.held_out_log import read_held_out, write_held_out
from avpretrain.methods.openelm.model import LanguageModel, read_shape
from avpretrain.training.folders import CONFIG, WEIGHTS, find_weights, list_checkpoints
from avpretrain.training.method import Method, Preview


class Windows:
    """The windows of a stream in the order of training: `context` tokens and the one after them."""

    def __init__(self, stream: TokenStream, context: int, seed: int) -> None:
        self.stream, self.context = stream, context
        self._order = WindowOrder(len(self), seed)

    @property
    def fingerprint(self) -> str:
        return self.stream.fingerprint

    def __len__(self) -> int:
        return (len(self.stream) - 1) // self.context

    def key(self, position: int) -> str:
        """Where the window begins in the stream."""
        return f"{self.stream.split}@{self._order.window(position) * self.context}"

    def describe(self) -> dict[str, Any]:
        """What run.json says; `clips` counts windows."""
        stream = self.stream
        facts = {"tokens": len(stream), "documents": stream.documents, "text_bytes": stream.text_bytes}
        return {"fingerprint": self.fingerprint, "clips": len(self), "split": stream.split, **facts}

    def batch(self, positions: Sequence[int]) -> Tensor:
        """int64 [B, context + 1]: the windows at these positions of training."""
        starts = [self._order.window(position) * self.context for position in positions]
        return torch.from_numpy(np.stack([self.stream.read(start, self.context + 1) for start in starts]))


class OpenELM(Method):
    """Predicts the next token; held-out perplexity is measured at checkpoints, the last of which are averaged."""

    cfg: OpenELMConfig
    config = OpenELMConfig
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {"bits_per_byte": "min", "nll": "min"}
    shown: ClassVar[Mapping[str, str]] = {"nll": "nll"}
    previews = True
    _tokenizer: Tokenizer | None = None
    _windows: Windows | None = None
    _held_out: TokenStream | None = None

    # --- before the first step ---------------------------------------------------------------------------------------

    def open(self) -> Sequence[str]:
        """Packs text that is not packed yet, opens it, and fills in the vocabulary."""
        data = self.cfg.data
        if not data.shards:
            raise UsageError(
                "no data: give --data TEXT (text files or folders of them, or what avpretrain tokens wrote)"
            )
        sets = [is_token_set(path) for path in data.shards]
        folders = [Path(path) for path in data.shards]
        if not all(sets):
            if any(sets):
                raise UsageError(
                    "data.shards names packed tokens and text; pack the text, too: avpretrain tokens TEXT OUT"
                )
            if data.tokenizer and self.cfg.model.vocabulary:  # before the text is packed, which may take long
                load_tokenizer(data.tokenizer, data.separator).check_fits(self.cfg.model.vocabulary, "model.vocabulary")
            folders = [as_tokens(data.shards, data, say)]
            self.cfg = dataclasses.replace(self.cfg, data=dataclasses.replace(data, shards=(str(folders[0]),)))
        stream = TokenStream(folders, data.split)
        self._tokenizer = tokenizer = stream.sets[0].tokenizer()
        model = self.cfg.model
        if model.vocabulary == 0:
            model = dataclasses.replace(model, vocabulary=tokenizer.size)
            self.cfg = dataclasses.replace(self.cfg, model=model)
        tokenizer.check_fits(model.vocabulary, "model.vocabulary")
        self._windows = Windows(stream, model.context, self.cfg.seed) if len(stream) > model.context else None
        if self._windows is None:
            raise UsageError(
                f"split '{data.split}' holds {len(stream)} tokens, but a window takes {model.context + 1}; give more "
                "text, or lower model.context"
            )
        has_held_out = data.held_out and all(data.held_out in index.splits for index in stream.sets)
        self._held_out = TokenStream(folders, data.held_out) if has_held_out else None
        if self._held_out is not None and len(self._held_out) < 2:
            self._held_out = None
        if data.held_out and self._held_out is None:
            return [f"the data have no split '{data.held_out}', so no perplexity is measured while it trains"]
        return ()

    @property
    def data(self) -> Windows:
        """The windows that `open` opened."""
        assert self._windows is not None
        return self._windows

    # --- training ----------------------------------------------------------------------------------------------------

    def model(self) -> LanguageModel:
        """A fresh one; before `open` its vocabulary is that of the tokenizer that would be trained."""
        separator = None if self._tokenizer is None else self._tokenizer.separator
        separator = (separator or 0) if self.cfg.data.mask_documents else None
        return LanguageModel(self.model_config, self.cfg.z_loss, separator)

    def check(self, steps: Sequence[Step]) -> None:
        """Refuses weights to start from that are another model's, before a run folder is made."""
        if not self.cfg.init or list_checkpoints(self.cfg.run_dir / "checkpoints"):
            return
        there, here = read_shape(find_weights(self.cfg.init) / CONFIG), self.model_config
        for field in dataclasses.fields(LanguageModelShape):
            theirs, ours = getattr(there, field.name), getattr(here, field.name)
            if field.name != "context" and theirs != ours:
                raise UsageError(
                    f"init {self.cfg.init} is another model: {field.name} is {theirs} there and {ours} here; give the "
                    "run that model's sizes"
                )

    def initialise(self, model: nn.Module) -> None:
        """Copies the weights that `init` names, if any."""
        if self.cfg.init:
            model.load_state_dict(LanguageModel.from_pretrained(find_weights(self.cfg.init)).state_dict())

    def batches(self, steps: Sequence[Step], rank: int, world: int) -> AbstractContextManager[Iterator[Tensor]]:
        """Windows, read as they are needed: memory maps, so no processes."""
        if rank == 0:
            self._write_tokenizer(self.cfg.run_dir)

        def read() -> Iterator[Tensor]:
            for step in steps:
                yield self.data.batch(range(step.seen + rank, step.seen + step.batch_size, world))

        return contextlib.nullcontext(read())

    def example(self, phase: Phase, batch_size: int, device: torch.device) -> Tensor:
        """Tokens of noise."""
        size = (batch_size, self.cfg.model.context + 1)
        return torch.randint(self.model_config.vocabulary, size, device=device)

    # --- between steps -----------------------------------------------------------------------------------------------

    def measure(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The training text's negative log-likelihood, nats a token."""
        return {"nll": losses["nll"]}

    def preview(self, model: nn.Module, step: Step) -> Preview | None:
        """Measures perplexity and bits per byte of the held-out split, and logs them."""
        if self._held_out is None:
            return None
        found = measure(cast(LanguageModel, model), self._held_out, self.cfg.data.held_out_windows)
        seen = step.seen + step.batch_size
        self._log_held_out(seen, found.to_json())
        line = f"held out: perplexity {found.perplexity:.3f}, {found.bits_per_byte:.4f} bits per byte at {seen} windows"
        return Preview(line, {"bits_per_byte": found.bits_per_byte})

    def _log_held_out(self, seen: int, found: dict[str, Any]) -> None:
        """Adds a line; those of an attempt that was lost are dropped."""
        kept = [line for line in read_held_out(self.cfg.run_dir) if line["seen"] < seen]
        write_held_out(self.cfg.run_dir, [*kept, {"seen": seen, **found}])

    @property
    def model_config(self) -> LanguageModelShape:
        """The lists that the model is built from."""
        model = self.cfg.model
        return model.shape(model.vocabulary or self.cfg.data.vocabulary)

    @property
    def tokens_per_sample(self) -> int:
        """Tokens that are predicted of a window."""
        return self.cfg.model.context

    def save(self, model: nn.Module, folder: Path) -> None:
        """The mean of the last checkpoints, with the tokenizer beside it."""
        last = list_checkpoints(self.cfg.run_dir / "checkpoints")[-self.cfg.average :]
        if len(last) > 1:
            with torch.random.fork_rng(devices=[]):
                averaged = self.model()
            averaged.load_state_dict(mean_weights([checkpoint / WEIGHTS for checkpoint in last]))
            model = averaged
        super().save(model, folder)
        self._write_tokenizer(folder)
        if self._held_out is not None and len(last) > 1:
            device = PartialState().device
            found = measure(cast(LanguageModel, model.to(device)), self._held_out, self.cfg.data.held_out_windows)
            say(
                f"model: mean of the last {len(last)} checkpoints; held out: perplexity {found.perplexity:.3f}, "
                f"{found.bits_per_byte:.4f} bits per byte"
            )

    def _write_tokenizer(self, folder: Path) -> None:
        assert self._tokenizer is not None
        self._tokenizer.save(folder)


def mean_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of several files of weights, summed in float64."""
    total: dict[str, Tensor] = {}
    for path in paths:
        for name, value in load_file(path).items():
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + value.double()
    return {name: (value / len(paths)).float() for name, value in total.items()}
