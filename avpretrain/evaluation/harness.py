"""Language models in EleutherAI's lm-evaluation-harness (the extra `lm`): our model class, and tasks by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from avpretrain.core.errors import PROGRAM_ERRORS, UsageError, UserError, describe
from avpretrain.data.text.tokenizer import Tokenizer
from avpretrain.methods.openelm.generate import generate
from avpretrain.methods.openelm.model import LanguageModel
from avpretrain.methods.openelm.scoring import likelihoods, windows

GENERATED = 256
"""Tokens that a task may generate where it does not say how many."""
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which tasks say how many."""


class HarnessModel(TemplateLM):
    """A language model of ours as the harness calls it. Every text begins with the separator, as in training.

    Args:
        model: where it is, in evaluation mode.
        batch_size: requests that are scored at a time; changes nothing but speed.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch_size: int = 16) -> None:
        super().__init__()
        self.model, self.tokens, self.batch_size = model, tokenizer, batch_size

    @property
    def eot_token_id(self) -> int:
        return self.tokens.separator

    @property
    def prefix_token_id(self) -> int:
        return self.tokens.separator

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at a time."""
        return self.model.cfg.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, after the separator unless special tokens are unwanted."""
        start = [] if add_special_tokens is False else [self.tokens.separator]
        return start + self.tokens.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = likelihoods(self.model, [(given, predicted) for _, given, predicted in requests], self.batch_size)
        answers = [(one.log_probability, one.greedy) for one in found]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, each on its own, each token from as much before it as the context holds."""
        texts = [request.args[0] for request in requests]
        parts = [list(windows(self.tokens.encode(text), self.tokens.separator, self.max_length)) for text in texts]
        scores = iter(likelihoods(self.model, [pair for pairs in parts for pair in pairs], self.batch_size))
        totals = [sum(next(scores).log_probability for _ in pairs) for pairs in parts]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts after prompts, up to the first of the strings that end them, which is left out.

        A prompt that leaves no room is cut at its beginning; at most half of the context is generated.
        """
        texts = []
        for request in requests:
            prompt, options = request.args
            texts.append(self._generate(prompt, dict(options)))
            self.cache_hook.add_partial("generate_until", (prompt, options), texts[-1])
        return texts

    def _generate(self, prompt: str, options: dict[str, Any]) -> str:
        ends = options.get("until") or []
        ends = [end for end in ([ends] if isinstance(ends, str) else ends) if end]
        asked = next((int(options[name]) for name in LIMITS if options.get(name)), GENERATED)
        count = min(asked, max(1, self.max_length // 2))
        given = self.tok_encode(prompt)[-(self.max_length - count) :]
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample", True) else 0.0
        top_k, text, tokens = int(options.get("top_k") or 0), "", list[int]()
        for token in generate(self.model, given, count, temperature, top_k, ends=self.tokens.ends):
            tokens.append(token)
            text = self.tokens.decode(tokens)
            places = [place for end in ends if (place := text.find(end)) >= 0]
            if places:
                return text[: min(places)]
        return text


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """One metric of one task."""

    task: str
    metric: str
    value: float
    stderr: float | None
    """Standard error over samples; none where the harness gives none."""
    samples: int | None

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TaskScore:
        """The inverse of `to_json`."""
        return cls(**{name: values[name] for name in cls.__slots__})


def run_tasks(
    model: HarnessModel,
    tasks: Sequence[str],
    include: Path | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[TaskScore]:
    """Scores of tasks, in the order of their names as given; a group of tasks gives those of its members, too.

    Args:
        include: folder with tasks of one's own (`*.yaml`, see the harness's guide).
        fewshot: examples before each question; none = as the task says.
        limit: questions of a task, from its beginning; none = all.
        seed: of the choice of examples.

    Raises:
        UsageError: there is no such task.
        UserError: a task's data can't be had, or it can't be run.
    """
    manager = _manager(tasks, include)
    try:
        loaded = manager.load(list(tasks))
    except PROGRAM_ERRORS:
        raise
    except Exception as error:  # whatever a task's own code and the data library raise
        raise UserError(
            f"the data of {' '.join(tasks)} can't be had: {describe(error)[:300]}; tasks by name fetch their data from "
            "the Hugging Face hub unless its cache holds them; for tasks of your own files give --include"
        ) from error
    try:
        found = simple_evaluate(
            model=model, tasks=list(loaded["tasks"].values()), num_fewshot=fewshot,
            limit=limit, task_manager=manager, log_samples=False, bootstrap_iters=1000, random_seed=seed,
            numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
    except (UserError, *PROGRAM_ERRORS):
        raise
    except Exception as error:
        raise UserError(f"{' '.join(tasks)} can't be run: {describe(error)[:300]}") from error
    counts = found.get("n-samples", {})
    return [score for task, values in found["results"].items() for score in _scores(task, values, counts.get(task))]


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """Finds tasks: in the folder alone if they are all there, since reading the harness's thousands takes long."""
    if not tasks:
        raise UsageError("no task: name some, such as hellaswag")
    if include is not None and not include.is_dir():
        raise UserError(f"--include {include} is no folder; name one with tasks as *.yaml")
    place = None if include is None else str(include)
    if place is not None:
        manager = TaskManager(include_path=place, include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=place)
    for task in tasks:
        if task not in manager.all_tasks:
            close = difflib.get_close_matches(task, manager.all_tasks, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "python -m lm_eval ls tasks lists them"
            raise UsageError(f"no task '{task}'; {hint}")
    return manager


def _scores(task: str, values: dict[str, Any], counts: dict[str, Any] | None) -> list[TaskScore]:
    """Of the harness's 'metric,filter' keys, those that hold a number."""
    found = []
    for key, value in values.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}_stderr,{kind}")
        found.append(
            TaskScore(
                task=task,
                metric=metric if kind == "none" else f"{metric} ({kind})",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                samples=None if counts is None else int(counts["effective"]),
            )
        )
    return found
