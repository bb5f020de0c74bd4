"""Our model class in lm-evaluation-harness: tasks made of local files, offline, against numbers counted here."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.text.tokenizer import Tokenizer, train_tokenizer
from avpretrain.methods.load import load_language_model
from avpretrain.methods.openelm.config import LanguageModelConfig
from avpretrain.methods.openelm.generate import generate
from avpretrain.methods.openelm.model import LanguageModel, save_pretrained
from tests.support.texts import sentences

HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HAS_HARNESS, reason="lm-eval is not installed; pip install 'avpretrain[lm]'")

QUESTIONS: list[dict[str, Any]] = [
    {"question": "The cat", "choices": [" sees the dog.", " hears"]},
    {"question": "A small bird", "choices": [" or", " follows the river and the stone."]},
    {"question": "Été", "choices": [" beside the stone.", " under", " 漢字 and a loud dog"]},
]
TEXTS = [sentences(12, 5).strip(), sentences(3, 6).strip()]
TASKS = {
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "choices",
        "doc_to_target": "answer", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    },
    "whole": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "written": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm") / "model"
    folder.mkdir()
    tokenizer = train_tokenizer([sentences(120, 1)], 300)
    torch.manual_seed(0)
    cfg = LanguageModelConfig(vocabulary=tokenizer.size, context=24, width=64, depth=2, head_width=16)
    save_pretrained(LanguageModel(cfg.shape()), folder)
    tokenizer.save(folder)
    return folder


def nats(model: LanguageModel, tokens: list[int], predicted: int) -> float:
    """Log-probability of the last tokens, by the definition."""
    with torch.no_grad():
        logs = model.logits(torch.tensor([tokens[:-1]]))[0].double().log_softmax(-1)
    return sum(float(logs[i - 1, tokens[i]]) for i in range(len(tokens) - predicted, len(tokens)))


def likeliest(model: LanguageModel, tokenizer: Tokenizer, question: str, choices: list[str]) -> int:
    before = [tokenizer.separator, *tokenizer.encode(question)]
    rows = [[tokenizer.separator, *tokenizer.encode(question + choice)] for choice in choices]
    scores = [nats(model, row, len(row) - len(before)) for row in rows]
    return scores.index(max(scores))


def continuation(model: LanguageModel, tokenizer: Tokenizer, prompt: str, count: int) -> str:
    tokens = [tokenizer.separator, *tokenizer.encode(prompt)]
    return tokenizer.decode(generate(model, tokens, count, temperature=0, ends=tokenizer.ends))


@pytest.fixture
def tasks(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three tasks and their data, and no way to the hub."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    model, tokenizer = load_language_model(model_folder)
    asked = [str(q["question"]) for q in QUESTIONS]
    written = [{"question": q, "answer": continuation(model, tokenizer, q, 8).split(".")[0]} for q in asked]
    written[0]["answer"] = "something else"
    choices = [{**q, "answer": likeliest(model, tokenizer, q["question"], q["choices"])} for q in QUESTIONS]
    choices[2]["answer"] = (choices[2]["answer"] + 1) % 3
    rows = {"choices": choices, "whole": [{"text": text} for text in TEXTS], "written": written}
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in TASKS.items():
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        files = {"data_files": {"validation": str(data)}, "cache_dir": str(tmp_path / "cache")}
        task = {"task": f"local_{name}", "dataset_path": "json", "dataset_kwargs": files, **task}
        (folder / f"{name}.yaml").write_text(json.dumps({**task, "validation_split": "validation"}))
    return folder


@needs_harness
def test_local_tasks_run_offline_and_give_the_numbers_of_the_definitions(
    tasks: Path, model_folder: Path, tmp_path: Path
) -> None:
    names = [f"local_{name}" for name in TASKS]
    main(["lm-eval", str(model_folder), *names, "--include", str(tasks), "--out", str(tmp_path / "r.json"), "--debug"])
    answer = json.loads((tmp_path / "r.json").read_text())
    found = {score["task"]: score for score in answer["scores"]}
    assert [found[name]["metric"] for name in names] == ["acc", "bits_per_byte", "exact_match"]
    assert [found[name]["samples"] for name in names] == [3, 2, 3] and answer["versions"]["torch"]

    model, tokenizer = load_language_model(model_folder)
    assert found["local_choices"]["value"] == pytest.approx(2 / 3), "one answer is not the likeliest"
    total = 0.0
    for text in TEXTS:
        tokens = [tokenizer.separator, *tokenizer.encode(text)]
        for start in range(1, len(tokens), 24):
            end = min(start + 24, len(tokens))
            total += nats(model, tokens[max(0, end - 25) : end], end - start)
    expected = -total / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert found["local_whole"]["value"] == pytest.approx(expected, rel=1e-5)
    assert found["local_written"]["value"] == pytest.approx(2 / 3)


@needs_harness
def test_what_is_generated_ends_where_it_is_told_and_leaves_room(model_folder: Path) -> None:
    from avpretrain.evaluation.harness import HarnessModel

    model, tokenizer = load_language_model(model_folder)
    ours, long = HarnessModel(model, tokenizer), "The cat sees the dog and " * 9
    whole = ours._generate("The cat", {"max_gen_toks": 8, "do_sample": False})
    assert whole == continuation(model, tokenizer, "The cat", 8)
    end = whole[3:5]
    found = ours._generate("The cat", {"max_gen_toks": 8, "do_sample": False, "until": end})
    assert found == whole[: whole.index(end)]
    tokens = [tokenizer.separator, *tokenizer.encode(long)][-16:]
    expected = tokenizer.decode(generate(model, tokens, 8, temperature=0, ends=tokenizer.ends))
    assert ours._generate(long, {"max_gen_toks": 8, "do_sample": False}) == expected


@needs_harness
def test_tasks_that_can_not_be_run_are_a_line(tasks: Path, model_folder: Path) -> None:
    from avpretrain.evaluation.harness import HarnessModel, run_tasks

    model = HarnessModel(*load_language_model(model_folder))
    with pytest.raises(UsageError, match="no task: name some"):
        run_tasks(model, [])
    with pytest.raises(UserError, match="is no folder; name one with tasks as"):
        run_tasks(model, ["local_whole"], tasks / "whole.yaml")
    (tasks.parent / "whole.jsonl").unlink()
    with pytest.raises(UserError, match="the data of local_whole can't be had: FileNotFoundError"):
        run_tasks(model, ["local_whole"], tasks)


def test_without_the_extra_it_is_named(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'avpretrain\[lm\]'"):
        main(["lm-eval", str(model_folder), "hellaswag", "--debug"])
