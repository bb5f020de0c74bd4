"""`avpretrain lm-eval CKPT TASKS...`."""

from __future__ import annotations

import importlib.util
import json as json_format
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import say

PAPER = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "piqa", "sciq", "winogrande")
"""The zero-shot tasks that OpenELM's model card reports."""


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    tasks: Annotated[Positional[tuple[str, ...]], arg(metavar="TASKS")] = PAPER,
    /,
    include: Path | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Run tasks of EleutherAI's lm-evaluation-harness on a language model.

    Reads a checkpoint, and the tasks' data: from the Hugging Face hub or its cache, or from files that a task of
    --include names. Needs the extra: pip install 'avpretrain[lm]'. Writes eval/lm_eval_TASKS.json into the
    checkpoint's run, or the file --out. Takes from seconds (a local task, a tiny model) to hours.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors, config.json and tokenizer.json.
        tasks: Names of tasks; none = the zero-shot tasks of OpenELM's model card.
        include: Folder with tasks of your own as *.yaml.
        fewshot: Examples before each question; none = as the task says.
        limit: Questions of each task, from its beginning; none = all.
        batch_size: Requests at a time; changes nothing but speed.
        seed: Of the choice of examples.
        out: JSON file to write in place of the run's.
        json: Print the result as JSON.
    """
    require_file(out)
    if batch_size < 1 or (limit is not None and limit < 1) or (fewshot is not None and fewshot < 0):
        raise UsageError("--batch-size and --limit must be at least 1, --fewshot at least 0")
    from avpretrain.methods.openelm.model import LanguageModel, read_shape
    from avpretrain.training.folders import find_weights

    read_shape(find_weights(ckpt) / "config.json")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval needs EleutherAI's harness: pip install 'avpretrain[lm]'")
    import torch

    from avpretrain.core.provenance import environment
    from avpretrain.evaluation.harness import HarnessModel, run_tasks
    from avpretrain.evaluation.results import result_path
    from avpretrain.methods.load import load_language_model

    model, tokenizer = load_language_model(ckpt)
    assert isinstance(model, LanguageModel)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    scores = run_tasks(HarnessModel(model, tokenizer, batch_size), tasks, include, fewshot, limit, seed)
    answer = {
        "task": "lm_eval", "scores": [score.to_json() for score in scores], "checkpoint": str(ckpt),
        "fewshot": fewshot, "limit": limit, "seed": seed, **environment(),
    }  # fmt: skip
    path = result_path(ckpt, out, "lm_eval", *tasks)
    if path is not None:
        write_json(path, answer)
    if json:
        print(json_format.dumps(answer, indent=2))
        return
    for score in scores:
        more = "" if score.stderr is None else f" +- {score.stderr:.4f}"
        say(f"{score.task}: {score.metric} {score.value:.4f}{more}" + (f" ({score.samples})" if score.samples else ""))
    if path is not None:
        say(f"result: {path}")
