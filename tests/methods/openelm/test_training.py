"""A language model is trained by the engine: it learns, is killed and resumed, on one rank and on two, and reported."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from avpretrain import api
from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.text.tokens import TokenStream
from avpretrain.methods.load import load_language_model
from avpretrain.methods.openelm.generate import generate
from avpretrain.methods.openelm.held_out import HeldOut, measure
from avpretrain.methods.openelm.held_out_log import read_held_out
from avpretrain.training.folders import list_checkpoints
from avpretrain.training.metrics import read_metrics
from tests.support.ranks import run_ranks, said
from tests.support.texts import text_config, write_texts
from tests.support.tiny_runs import final_state, same_bits


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("text") / "texts")


@pytest.fixture(scope="module")
def straight(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("lm") / "run"
    assert api.train(text_config(texts, run)).finished
    return run


def tokens_of(run: Path) -> Path:
    """The packed tokens that a run was trained on."""
    return Path(yaml.safe_load((run / "config.yaml").read_text())["data"]["shards"][0])


def test_text_is_packed_once_into_the_cache(straight: Path, texts: Path, cache: Path) -> None:
    assert tokens_of(straight).parent == cache / "tokens"
    made = (tokens_of(straight) / "tokens.json").stat().st_mtime_ns
    assert api.train(text_config(texts, straight)).finished, "the run that is done, named by its text again"
    assert (tokens_of(straight) / "tokens.json").stat().st_mtime_ns == made


def test_it_learns_and_says_what_it_knows_of_other_text(straight: Path) -> None:
    lines, held_out = read_metrics(straight), read_held_out(straight)
    assert lines[-1]["nll"] < 0.8 * lines[0]["nll"]
    assert lines[0]["loss"] == pytest.approx(lines[0]["nll"] + 1e-4 * lines[0]["z_loss"], rel=1e-5)
    assert [line["seen"] for line in held_out] == [48, 96, 144, 192]
    assert held_out[-1]["bits_per_byte"] < 0.8 * held_out[0]["bits_per_byte"]
    facts = json.loads((straight / "run.json").read_text())["data"]
    assert facts["documents"] == 2 and facts["tokens"] > 16 * facts["clips"]


def test_held_out_numbers_are_those_of_the_definition(straight: Path) -> None:
    model, tokenizer = load_language_model(straight)
    stream = TokenStream([tokens_of(straight)], "val")
    tokens = torch.from_numpy(stream.read(0, len(stream)))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 16):
            window = tokens[start : start + 17]
            logits = model.logits(window[None, :-1])[0].double()
            total -= logits.log_softmax(-1).gather(-1, window[1:, None]).sum().item()
    found = measure(model, stream, batch_size=5)
    text = tokenizer.decode(tokens.tolist())
    assert found.whole and found.tokens == len(tokens) - 1
    assert found.perplexity == pytest.approx(math.exp(total / (len(tokens) - 1)), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-4)
    assert HeldOut.from_json(found.to_json()) == found
    part = measure(model, stream, windows=3)
    assert not part.whole and part.tokens == 48


def test_the_final_model_is_the_mean_of_the_last_checkpoints(straight: Path) -> None:
    last = [load_file(p / "model.safetensors") for p in list_checkpoints(straight / "checkpoints")[-2:]]
    final = load_file(straight / "model" / "model.safetensors")
    for name, value in final.items():
        torch.testing.assert_close(value, (last[0][name] + last[1][name]) / 2)
    assert not torch.equal(final["norm.weight"], last[1]["norm.weight"])


def test_a_stopped_run_resumes_to_the_bit(straight: Path, texts: Path, tmp_path: Path) -> None:
    cfg = text_config(texts, tmp_path / "run")
    assert not api.train(cfg, stop_at=80).finished
    assert api.train(cfg).finished
    assert same_bits(final_state(tmp_path / "run"), final_state(straight))
    assert [line["seen"] for line in read_held_out(tmp_path / "run")] == [48, 80, 96, 144, 192]


def test_two_ranks_train_what_one_does(straight: Path, texts: Path, tmp_path: Path) -> None:
    cfg = text_config(texts, tmp_path / "run")
    assert run_ranks(tmp_path / "ranks", api.train, cfg) == [0, 0], said(tmp_path / "ranks")
    one, two = final_state(straight), final_state(tmp_path / "run")
    assert all(torch.allclose(one[name], two[name], atol=2e-4) for name in one if not name.startswith("optimizer"))


def test_masked_documents_train_too(texts: Path, tmp_path: Path) -> None:
    cfg = text_config(
        texts, tmp_path / "run", schedule={"samples": 16}, data={"mask_documents": True, "documents": "line"}
    )
    cfg = dataclasses.replace(cfg, average=1)
    assert api.train(cfg).finished
    assert math.isfinite(read_metrics(tmp_path / "run")[-1]["loss"])


def test_text_comes_out_as_it_is_made(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_language_model(straight)
    prompt = [tokenizer.separator, *tokenizer.encode("The ")]
    greedy = list(generate(model, prompt, 6, temperature=0))
    tokens = list(prompt)
    with torch.no_grad():
        for token in greedy:  # without a cache
            assert token == int(model.logits(torch.tensor([tokens]))[0, -1].argmax())
            tokens.append(token)
    assert list(generate(model, prompt, 6, seed=1)) == list(generate(model, prompt, 6, seed=1))
    assert len(list(generate(model, prompt, 1000))) == 16 - len(prompt), "up to the context"
    assert list(generate(model, prompt, 6, temperature=0, ends={greedy[2]})) == greedy[: greedy.index(greedy[2])]
    with pytest.raises(UsageError, match="the prompt has 16 tokens"):
        list(generate(model, [1] * 16, 1))
    main(["generate", str(straight), "The ", "--tokens", "6", "--temperature", "0", "--debug"])
    assert capsys.readouterr().out == tokenizer.decode(prompt + greedy) + "\n"


def test_perplexity_of_shards_and_of_their_text_agree(
    straight: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tokens_of(straight)
    main(["perplexity", str(straight), str(shards), "--out", str(tmp_path / "r.json"), "--debug"])
    main(["perplexity", str(straight), str(texts / "val.txt"), "--json", "--debug"])
    first, second = json.loads((tmp_path / "r.json").read_text()), capsys.readouterr().out
    second = json.loads(second[second.index("{") :])
    assert first["bits_per_byte"] == pytest.approx(second["bits_per_byte"], rel=1e-6)
    assert (straight / "eval" / "perplexity_all_val.json").is_file()
    assert first["split"] == "val" and first["whole"] and first["versions"]["torch"]


def test_it_is_reported(straight: Path, tmp_path: Path) -> None:
    main(["report", str(straight), "--out", str(tmp_path / "report.html"), "--debug"])
    page = (tmp_path / "report.html").read_text()
    assert "Bits per byte" in page and "Perplexity" in page


def test_its_cost_is_counted_on_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flops", "openelm_tiny", "--model.context", "32", "--model.vocabulary", "512", "--json", "--debug"])
    found = json.loads(capsys.readouterr().out)
    shape = text_config(Path(), Path(), model={}).model
    assert shape is not None and found["tokens_per_sample"] == 32
    heads, hidden, width = (4, 6, 6, 6, 8, 8), (64, 160, 256, 320, 416, 512), 128
    weights = sum(
        2 * h * 16 * width + 2 * (h // 2) * 16 * width + 3 * f * width for h, f in zip(heads, hidden, strict=True)
    )
    attention = sum(2 * 32 * h * 16 for h in heads)
    assert found["per_token"] == 6 * (weights + 512 * width + attention)
    norms = (2 * 6 + 1) * width + 6 * 2 * 16
    assert found["parameters"] == weights + 512 * width + norms


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_another_alpha_in_the_same_folder_is_said(straight: Path, texts: Path) -> None:
    cfg = text_config(texts, straight, model={"scaling": {"alpha": [1.0, 1.0], "beta": [0.5, 4.0], "divisor": 8}})
    with pytest.raises(
        UsageError, match=r"another config: model.scaling.alpha is \[0.5, 1.0\] there and \[1.0, 1.0\] here"
    ):
        api.train(cfg)


def test_weights_of_another_alpha_are_no_start(straight: Path, texts: Path, tmp_path: Path) -> None:
    cfg = text_config(
        texts, tmp_path / "run", model={"scaling": {"alpha": [1.0, 1.0], "beta": [0.5, 4.0], "divisor": 8}}
    )
    with pytest.raises(UsageError, match=r"is another model: heads is \(2, 4\) there and \(4, 4\) here"):
        api.train(dataclasses.replace(cfg, init=str(straight)))
    assert not (tmp_path / "run").exists(), "else the right command would find another run there"


def test_a_start_from_weights_is_a_start_from_them(straight: Path, texts: Path, tmp_path: Path) -> None:
    cfg = text_config(texts, tmp_path / "run", schedule={"samples": 8}, average=1)
    assert api.train(dataclasses.replace(cfg, init=str(straight))).finished
    assert read_metrics(tmp_path / "run")[0]["nll"] < 1.05 * read_metrics(straight)[-1]["nll"]


def test_a_vocabulary_that_is_too_small_is_said(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the tokenizer has 300 tokens, but model\.vocabulary is 299"):
        api.train(text_config(texts, tmp_path / "run", model={"vocabulary": 299}))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_does_not_fit_is_said_before_text_is_packed(
    texts: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVPRETRAIN_CACHE", str(tmp_path / "cache"))
    cfg = text_config(texts, tmp_path / "run", model={"vocabulary": 299}, data={"tokenizer": str(straight)})
    with pytest.raises(UsageError, match=r"the tokenizer has 300 tokens, but model\.vocabulary is 299"):
        api.train(cfg)
    assert not list(tmp_path.iterdir())


def test_no_data_is_said(texts: Path, tmp_path: Path) -> None:
    cfg = text_config(texts, tmp_path / "run", data={"shards": []})
    with pytest.raises(UsageError, match="no data: give --data TEXT"):
        api.train(cfg)
    with pytest.raises(UserError, match="there is no"):
        api.train(text_config(tmp_path / "nowhere", tmp_path / "run"))
    (tmp_path / "short_train.txt").write_text("a b")
    with pytest.raises(UsageError, match="but a window takes 17; give more text"):
        api.train(text_config(tmp_path / "short_train.txt", tmp_path / "run"))
