"""`avpretrain finetune`."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from avpretrain.cli.shared.arguments import parse
from avpretrain.cli.shared.places import require_file, require_inputs
from avpretrain.cli.shared.results import show_result
from avpretrain.core.errors import UsageError
from avpretrain.evaluation.finetune.recipes import RECIPES, FinetuneConfig
from avpretrain.measures.scores import require_score


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the verb takes."""

    ckpt: Annotated[tyro.conf.Positional[Path], arg(metavar="CKPT")] = tyro.MISSING
    """A run folder, a checkpoint, or a folder with model.safetensors and config.json."""
    data: Annotated[tyro.conf.Positional[tuple[str, ...]], arg(metavar="DATA")] = tyro.MISSING
    """Folders or URLs written by `avpretrain shards`."""
    label: str = tyro.MISSING
    """Label to learn."""
    recipe: str = "small"
    """Recipe that the fields below start from; with --help they are shown as it sets them."""
    out: Path | None = None
    """File of the result."""
    compare: Path | None = None
    """An earlier result; prints the paired difference to it."""
    pictures: bool = False
    """Also draw confusion matrix and bars by class, as PNG next to the result."""
    json: bool = False
    """Print the result as JSON."""
    config: Annotated[FinetuneConfig, arg(name="")] = field(default_factory=FinetuneConfig)


def run(args: Sequence[str]) -> None:
    """Train a classifier from a checkpoint, test it, and train the same architecture from scratch as its baseline.

    Reads a checkpoint and shards with labels. Writes the result as JSON, and the predictions next to it, to --out or
    into the run's eval/ folder. Takes minutes (recipe small, 1,000 clips) to days (as2m), twice unless --no-baselines;
    one training for each fold. On several GPUs: accelerate launch eval/finetune.py CKPT DATA --label NAME ...
    """
    if not args or (args[0].startswith("-") and not {"-h", "--help"} & set(args)):
        raise UsageError("checkpoint and data come first: avpretrain finetune CKPT DATA --label NAME")
    recipe = _recipe(args)
    default = Arguments(recipe=recipe, config=RECIPES[recipe])
    given = parse(Arguments, args, "avpretrain finetune", default, run.__doc__)
    ckpt, data = given.ckpt, given.data
    if not data:
        raise UsageError("checkpoint and data come first: avpretrain finetune CKPT DATA --label NAME")
    require_file(given.out)
    require_inputs(ckpt, data)
    if given.compare is not None:
        require_score(given.compare)
    from accelerate import PartialState

    from avpretrain.evaluation.finetune.run import run_finetune
    from avpretrain.evaluation.results import compare_results, result_path, save_result

    outcome = run_finetune(ckpt, data, given.label, given.config)
    if not PartialState().is_main_process:
        return
    path = result_path(ckpt, given.out, outcome.result["task"], given.label, given.config.modality)
    if path:
        save_result(path, outcome.result, outcome.predictions)
    if path and given.pictures:
        from avpretrain.evaluation.figures import draw_results

        title = f"{given.label} from {given.config.modality}, {outcome.result['task'].replace('_', ' ')}"
        draw_results(outcome.predictions, None, title, path.with_suffix(""))
    comparison = compare_results(path, given.compare, given.config.seed) if path and given.compare else None
    if given.json:
        extra = {"comparison": comparison} if comparison else {}
        print(json_format.dumps({**outcome.result, "recipe": recipe, **extra}, indent=2))
    else:
        show_result(outcome.result, comparison, path)


def _recipe(args: Sequence[str]) -> str:
    """What follows --recipe; read first, since it sets the defaults of all other fields."""
    name = "small"
    for i, text in enumerate(args):
        if text == "--recipe" and i + 1 < len(args):
            name = args[i + 1]
        elif text.startswith("--recipe="):
            name = text.removeprefix("--recipe=")
    if name not in RECIPES:
        raise UsageError(f"no recipe '{name}'; recipes: {', '.join(RECIPES)}")
    return name
