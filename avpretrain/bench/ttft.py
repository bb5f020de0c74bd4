"""Time to the first token after a prompt, next to counted FLOPs and memory: of a base alone, its auxiliary model alone,
and the base over a cache that the auxiliary model predicts."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avpretrain.core.errors import UsageError
from avpretrain.cost.count import META, count, on_meta
from avpretrain.methods.kv_prediction.model import KVPredictor
from avpretrain.methods.openelm.model import LanguageModel, TextModel


@dataclass(frozen=True, kw_only=True, slots=True)
class TTFTPoint:
    """One way to read prompts of one length in batches of one size."""

    arm: str
    """'base', 'auxiliary' (each alone) or 'kv_prediction'."""
    tokens: int
    """Of a prompt."""
    batch_size: int
    seconds: float
    """Median, from prompt to logits of the next token."""
    fastest: float
    """Seconds, the least of all repeats."""
    flops: float
    """Counted on the model, of the whole batch: the head at the last token alone, an auxiliary model up to the keys and
    values that are used."""
    weight_bytes: int
    """Of the parts that run."""
    working_bytes: int | None
    """Most memory that a prompt takes on top, its cache included; none where it can't be told."""
    out_of_memory: bool = False
    """Whether it did not fit; then there is no time."""

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types, with what follows from the fields."""
        return {**asdict(self), "flops_per_second": self.flops_per_second}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TTFTPoint:
        """The inverse of `to_json`."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


Reader = Callable[[Tensor], Tensor]
"""Prompts, int64 [B, N], to logits of the next token, [B, 1, V]."""


def arms_of(model: TextModel) -> dict[str, tuple[Reader, list[torch.nn.Module]]]:
    """How prompts are read, by the name of the arm, and the modules that it takes."""
    if isinstance(model, KVPredictor):
        parts: list[torch.nn.Module] = [model.auxiliary, model.predictor, model.base]
        return {
            "base": (lambda tokens: first_token(model.base, tokens), [model.base]),
            "auxiliary": (lambda tokens: first_token(model.auxiliary, tokens), [model.auxiliary]),
            "kv_prediction": (lambda tokens: model.prefill(tokens, model.cache(tokens.shape[1], len(tokens))), parts),
        }
    assert isinstance(model, LanguageModel)
    return {"base": (lambda tokens: first_token(model, tokens), [model])}


def first_token(model: LanguageModel, tokens_BN: Tensor) -> Tensor:
    """Reads prompts into a fresh cache; logits of the next token, [B, 1, V], without those of the prompt."""
    cache = model.cache(tokens_BN.shape[1], len(tokens_BN))
    return model.head(model.hidden(tokens_BN, cache)[:, -1:])


def first_token_flops(build: Callable[[], TextModel], arm: str, tokens: int) -> float:
    """Operations of an arm from one prompt to logits of the next token, counted on the meta device."""
    model = on_meta(build)
    assert isinstance(model, TextModel)
    read, _ = arms_of(model)[arm]
    with torch.no_grad(), META:
        return count(model, lambda: read(torch.zeros(1, tokens, dtype=torch.int64, device=META))).forward


@torch.no_grad()
def bench_ttft(
    model: TextModel,
    lengths: Sequence[int],
    batch_sizes: Sequence[int],
    repeats: int = 10,
    warmup: int = 2,
    say: Callable[[TTFTPoint], None] = lambda point: None,
) -> list[TTFTPoint]:
    """Measures every arm of a model where it is, in its precision; the arms of a point take turns.

    Args:
        lengths: tokens of the prompts, at most the context.
        say: takes each point.

    Raises:
        UsageError: a length or a batch size is impossible.
    """
    context = model.cfg.context
    if not all(1 <= length <= context for length in lengths) or min(batch_sizes, default=0) < 1:
        raise UsageError(f"lengths must lie in [1, {context}], the model's context, and batch sizes must be positive")
    kind, points = type(model), []
    shape = model.shape if isinstance(model, KVPredictor) else model.cfg

    def build() -> TextModel:
        return KVPredictor.of_shape(shape) if kind is KVPredictor else LanguageModel(shape)  # type: ignore[arg-type]

    arms, draws = arms_of(model), torch.Generator().manual_seed(0)
    counted = {(arm, length): first_token_flops(build, arm, length) for arm in arms for length in lengths}
    for batch_size in batch_sizes:
        for length in lengths:
            tokens_BN = torch.randint(model.cfg.vocabulary, (batch_size, length), generator=draws).to(model.device)
            seconds = _seconds({arm: read for arm, (read, _) in arms.items()}, tokens_BN, warmup, repeats)
            for arm, (read, parts) in arms.items():
                weights = [p for part in parts for p in part.parameters()]
                point = TTFTPoint(
                    arm=arm,
                    tokens=length,
                    batch_size=batch_size,
                    seconds=statistics.median(seconds[arm]) if seconds[arm] else 0.0,
                    fastest=min(seconds[arm], default=0.0),
                    flops=batch_size * counted[arm, length],
                    weight_bytes=sum(p.numel() * p.element_size() for p in weights),
                    working_bytes=working_bytes(partial(read, tokens_BN), model.device) if seconds[arm] else None,
                    out_of_memory=not seconds[arm],
                )
                say(point)
                points.append(point)
    return points


def _seconds(readers: dict[str, Reader], tokens_BN: Tensor, warmup: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat of each arm, in turns, so that a disturbance meets all; none of one that does not fit."""
    sync: Callable[[], Any] = torch.cuda.synchronize if tokens_BN.is_cuda else lambda: None
    seconds: dict[str, list[float]] = {arm: [] for arm in readers}
    lost = set()
    for i in range(warmup + repeats):
        for arm, read in readers.items():
            if arm in lost:
                continue
            sync()
            started = time.perf_counter()
            try:
                read(tokens_BN).argmax(-1).cpu()
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                lost.add(arm)
                seconds[arm] = []
                continue
            if i >= warmup:
                seconds[arm].append(time.perf_counter() - started)
    return seconds


def working_bytes(work: Callable[[], Any], device: torch.device) -> int | None:
    """Most memory that `work()` takes on top of what is held before it.

    On a CPU by the peak of resident memory, which Linux tells; none elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before is not to hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")  # the peak is reset to what is resident now
        before = _resident("VmRSS:")
        work()
        return max(0, _resident("VmHWM:") - before)
    except (OSError, AttributeError, StopIteration):
        return None


def _resident(name: str) -> int:
    lines: Iterable[str] = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
