"""`avpretrain flops`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from avpretrain.cli.shared.arguments import parse
from avpretrain.cli.shared.config_first import ConfigArguments, arguments_for, read
from avpretrain.cli.shared.tables import show_table
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError
from avpretrain.core.terminal import Console
from avpretrain.measures.numbers import flops, percent
from avpretrain.methods.diffmavil.config import TrainConfig, load_config
from avpretrain.methods.diffmavil.run_cost import RunCost, as_json, mavil_of, run_cost, samples_of
from avpretrain.methods.load import load_config as load_any_config


@dataclass(frozen=True, kw_only=True)
class Arguments(ConfigArguments):
    """What follows the config's name."""

    clips: int | None = None
    """Clips in the training split, for the totals of the run."""
    baseline: str | None = None
    """Baseline: a YAML file or the name of a preset; none = MAViL at the same size."""
    json: bool = False
    """Print the numbers as JSON."""


def run(args: Sequence[str]) -> None:
    """Count the floating-point operations of pretraining: by component, by phase of the schedule, against a baseline.

    Reads a config; no data, no weights. Writes nothing. Takes a second.
    """
    if args and not args[0].startswith("-"):
        other = load_any_config(args[0])
        if not isinstance(other, TrainConfig):
            _show_method(args, other)
            return
    given = read(Arguments, args, "avpretrain flops", run.__doc__)
    if given is None:
        return
    if given.clips is not None and given.clips < 1:
        raise UsageError(f"--clips must be at least 1, got {given.clips}")
    cfg, samples = given.config, samples_of(given.config, given.clips)
    other = load_config(given.baseline) if given.baseline else mavil_of(cfg)
    cost, baseline = run_cost(cfg, samples), run_cost(other, samples)
    if given.json:
        answer: dict[str, Any] = {"config": cfg.name, **as_json(cost, samples is not None)}
        reference = {"config": other.name, **as_json(baseline, samples is not None), "saving": cost.saving(baseline)}
        print(json.dumps({**answer, "baseline": reference}, indent=2))
        return
    console = Console()
    _show_components(cfg.name, cost, other.name, baseline)
    _show_phases(cost, samples is not None)
    console.print(
        f"{flops(cost.per_clip)} to train on one clip: {_compared(cost.saving(baseline))} {other.name}"
        + (f"; {flops(cost.total)} for {cost.clips:,} clips in {cost.steps:,} steps" if samples else ""),
        highlight=False,
        soft_wrap=True,
    )


def _show_method(args: Sequence[str], cfg: EngineConfig) -> None:
    """What a method other than DiffMAViL costs, counted on its own model; phases that cost the same are one."""
    name, *rest = args
    arguments = arguments_for(Arguments, type(cfg))
    given: Any = parse(arguments, rest, f"avpretrain flops {name}", arguments(config=cfg), run.__doc__)
    if given.baseline or given.clips is not None:
        raise UsageError(f"--baseline and --clips are for diffmavil; {name} is a config of method {cfg.method}")
    import torch

    from avpretrain.methods.load import make_method

    method = make_method(given.config)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in method.model().parameters())
    phases = [{"phase": str(phase), "training": method.flops(phase, 1)} for phase in method.phases()]
    answer: dict[str, Any] = {"config": cfg.name, "method": cfg.method, "parameters": parameters, "phases": phases}
    answer["per_sample"] = phases[-1]["training"]
    tokens = getattr(method, "tokens_per_sample", None)
    if tokens:
        answer |= {"tokens_per_sample": tokens, "per_token": phases[-1]["training"] / tokens}
    if given.json:
        print(json.dumps(answer, indent=2))
        return
    each = f", {flops(answer['per_token'])} a token of {tokens:,}" if tokens else ""
    Console().print(
        f"{cfg.name}: {parameters:,} parameters; {flops(answer['per_sample'])} to train on one sample{each}",
        highlight=False,
        soft_wrap=True,
    )


def _compared(saving: float) -> str:
    if abs(saving) < 5e-4:
        return "the same as"
    return f"{percent(abs(saving))} {'less' if saving > 0 else 'more'} than"


def _show_components(name: str, cost: RunCost, other: str, baseline: RunCost) -> None:
    rows = []
    theirs = baseline.components
    for key, part in cost.components.items():
        if not part.training and not theirs[key].training:
            continue
        saved = percent(1 - part.training / theirs[key].training) if theirs[key].training else ""
        share = percent(part.training / cost.per_clip)
        cells = [flops(part.forward), flops(part.training), share, flops(theirs[key].training), saved]
        rows.append([key.replace("_", " "), *cells])
    forward = sum(part.forward for part in cost.components.values())
    totals = [flops(forward), flops(cost.per_clip), "100.0%", flops(baseline.per_clip), percent(cost.saving(baseline))]
    headings = ("component", "forward", "training", "share", "baseline", "saved")
    title = f"FLOPs of one clip, mean over the run: {name} and {other}"
    show_table(headings, [*rows, ["all", *totals]], title, total=True)


def _show_phases(cost: RunCost, known_length: bool) -> None:
    rows = []
    headings = ["share of clips", "audio masked", "video masked", "batch", "FLOPs a clip"]
    headings += ["steps", "FLOPs in all"] if known_length else []
    for phase in cost.phases:
        row = [percent(phase.clips / cost.clips), percent(phase.audio_ratio), percent(phase.video_ratio)]
        row += [f"{phase.batch_size}", flops(phase.flops.training)]
        row += [f"{phase.steps:,}", flops(phase.flops.training * phase.clips)] if known_length else []
        rows.append(row)
    show_table(headings, rows, "Phases of the schedule", text=0)
