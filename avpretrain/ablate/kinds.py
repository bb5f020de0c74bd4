"""What a matrix asks of a method: its data, what a run of it costs, and how a cell is evaluated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpretrain.config.schedules import cost_by_rule, plan, total_samples
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.openelm.config import OpenELMConfig

if TYPE_CHECKING:
    from avpretrain.ablate.matrix import AblationConfig

NOMINAL_STEPS = 4000
"""Steps of a run whose length is not known, so that only the cost of a sample means something."""


@dataclass(frozen=True, slots=True)
class CellCost:
    """What a run costs by the count."""

    per_clip: float
    """FLOPs of training on one sample, mean over the run."""
    steps: int
    total: float
    details: dict[str, Any]
    """In plain JSON types: by component and phase, where the method tells them apart."""


def check_kind(cfg: EngineConfig, settings: AblationConfig, where: str) -> None:
    """Refuses a base that no matrix is made for, and evaluations that it knows nothing of.

    Raises:
        UsageError: it is one, or has one.
    """
    if isinstance(cfg, TrainConfig):
        return
    if not isinstance(cfg, OpenELMConfig):
        raise UsageError(f"{where}: base is a config of method {cfg.method}; a matrix is of diffmavil or openelm")
    if settings.probes:
        raise UsageError(f"{where}: probes are for audio and video; a language model is measured by its perplexity")


def sample_name(cfg: EngineConfig) -> str:
    """What one sample is called."""
    return "window" if isinstance(cfg, OpenELMConfig) else "clip"


def fingerprint_of(cfg: EngineConfig, data: tuple[str, ...] = ()) -> str:
    """Of the data of a config, or of other data of its kind; all splits.

    Raises:
        UserError: they can't be read.
    """
    assert isinstance(cfg, TrainConfig | OpenELMConfig)
    shards = data or cfg.data.shards
    if isinstance(cfg, OpenELMConfig):
        from avpretrain.data.text.tokens import TokenIndex

        return "+".join(TokenIndex(folder).fingerprint for folder in shards)
    from avpretrain.data.read.clips import ClipSet

    return ClipSet(shards, "all").fingerprint


def training_samples(cfg: EngineConfig) -> int | None:
    """Samples of an epoch; none where no data are named, or text that is not packed yet.

    Raises:
        UserError: the data can't be read.
    """
    if isinstance(cfg, TrainConfig):
        if not cfg.data.shards:
            return None
        from avpretrain.data.read.clips import ClipSet

        return len(ClipSet(cfg.data.shards, cfg.data.split, cfg.data.cache_dir))
    assert isinstance(cfg, OpenELMConfig)
    from avpretrain.data.text.tokens import TokenStream, is_token_set

    if not cfg.data.shards or not all(map(is_token_set, cfg.data.shards)):
        return None
    return (len(TokenStream(cfg.data.shards, cfg.data.split)) - 1) // cfg.model.context


def run_length(cfg: EngineConfig, samples: int | None) -> int | None:
    """Samples seen in the whole run, over a training split of so many; none where the config leaves it open."""
    assert isinstance(cfg, TrainConfig | OpenELMConfig)
    if samples is None and cfg.schedule.samples is None:
        return None
    return total_samples(cfg.schedule, samples or 0)


def cost_of(cfg: EngineConfig, samples: int | None, known_length: bool = True) -> CellCost:
    """Counts what a run costs.

    Args:
        samples: seen in the whole run; none = a nominal number.
        known_length: whether `details` say totals.

    Raises:
        UsageError: the run is shorter than its first batch.
    """
    if isinstance(cfg, TrainConfig):
        from avpretrain.methods.diffmavil.run_cost import as_json, run_cost

        cost = run_cost(cfg, samples)
        return CellCost(cost.per_clip, cost.steps, cost.total, as_json(cost, known_length))
    assert isinstance(cfg, OpenELMConfig)
    from avpretrain.methods.load import make_method

    method = make_method(cfg)
    total = NOMINAL_STEPS * cfg.schedule.batch.size if samples is None else samples
    steps = list(plan(cfg.schedule, cfg.optim, total, method.phase, cost_by_rule(cfg.schedule.batch, method.cost)))
    seen, per_sample = sum(step.batch_size for step in steps), method.flops(method.phase(1.0), 1)
    totals = {"clips": seen, "steps": len(steps), "total": per_sample * seen} if known_length else {}
    details: dict[str, Any] = {"per_clip": per_sample, **totals, "components": {}, "phases": []}
    return CellCost(per_sample, len(steps), per_sample * seen, details)


def prepared(cfg: EngineConfig) -> EngineConfig:
    """A config in which text has become packed tokens, once for all cells."""
    if not isinstance(cfg, OpenELMConfig):
        return cfg
    from avpretrain.core.terminal import say
    from avpretrain.data.text.tokens import is_token_set
    from avpretrain.data.write.cached_text import as_tokens

    if all(map(is_token_set, cfg.data.shards)):
        return cfg
    folder = as_tokens(cfg.data.shards, cfg.data, say)
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, shards=(str(folder),)))


def language_stages(cfg: OpenELMConfig, run: Path, split: str) -> list[tuple[str, list[str]]]:
    """Perplexity of a trained cell, of each set of tokens, on the matrix's split or else on the held-out one."""
    from avpretrain.data.text.tokens import TokenIndex

    found = []
    for number, folder in enumerate(cfg.data.shards):
        splits = TokenIndex(folder).splits
        chosen = split if split in splits else cfg.data.held_out
        if chosen in splits:
            name = "perplexity" if len(cfg.data.shards) == 1 else f"perplexity_{number}"
            out = str(run / "eval" / f"{name}.json")
            found.append((name, ["perplexity", str(run), folder, "--split", chosen, "--out", out]))
    return found
