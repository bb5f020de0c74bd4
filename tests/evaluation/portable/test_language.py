"""A language model's folder for `transformers`: code made of the package's own, in OpenELM's layout."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from avpretrain.cli.main import main
from avpretrain.data.text.tokenizer import train_tokenizer
from avpretrain.evaluation.portable.export import language_code
from avpretrain.methods.load import load_language_model
from avpretrain.methods.openelm.conversions.huggingface import foreign_names
from avpretrain.methods.openelm.generate import generate
from avpretrain.methods.openelm.model import LanguageModel, save_pretrained
from tests.methods.openelm.test_huggingface import HEADS, HIDDEN, released
from tests.methods.openelm.test_model import TINY, reference, tiny_model
from tests.support.texts import sentences

HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
needs_transformers = pytest.mark.skipif(not HAS_TRANSFORMERS, reason="held to transformers: pip install transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `export` writes of a model with random weights."""
    place = tmp_path_factory.mktemp("portable")
    (place / "model").mkdir()
    tokenizer = train_tokenizer([sentences(50)], 290)
    torch.manual_seed(0)
    model = LanguageModel(dataclasses.replace(TINY, vocabulary=290))
    save_pretrained(model, place / "model")
    tokenizer.save(place / "model")
    main(["export", str(place / "model"), str(place / "out"), "--format", "transformers", "--debug"])
    return place / "out"


def test_the_code_is_the_packages_own_and_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where of transformers there are bases, and neither avpretrain nor einops can be imported."""
    ours, tokens = tiny_model(), torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits, turned, nll = ours.logits(tokens), ours.logits(tokens.flip(1)), ours(tokens)["nll"]

    class Config:
        def __init__(self, **values: Any) -> None:
            self.__dict__ |= values

        def to_dict(self) -> dict[str, Any]:
            return self.__dict__

    class Model(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()

        def post_init(self) -> None:
            pass

    base, outputs = types.ModuleType("transformers"), types.ModuleType("outputs")
    base.PretrainedConfig, base.PreTrainedModel = Config, Model  # type: ignore[attr-defined]
    base.GenerationMixin = object  # type: ignore[attr-defined]
    outputs.CausalLMOutput = lambda loss, logits: types.SimpleNamespace(loss=loss, logits=logits)  # type: ignore[attr-defined]
    for name in ("avpretrain", "einops", "jaxtyping", "safetensors", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "transformers", base)
    monkeypatch.setitem(sys.modules, "transformers.modeling_outputs", outputs)
    code = types.ModuleType("modeling_openelm")
    monkeypatch.setitem(sys.modules, "modeling_openelm", code)
    exec(compile(language_code(), "modeling_openelm.py", "exec"), code.__dict__)
    ends = {"qkv_multipliers": [0.5, 1.0], "ffn_multipliers": [0.5, 4.0], "ffn_dim_divisor": 16, "num_gqa_groups": 2}
    sizes = {"vocab_size": 50, "max_context_length": 16, "num_transformer_layers": 3, "model_dim": 64, "head_dim": 16}
    model = code.OpenELMForCausalLM(code.OpenELMConfig(model_type="openelm", **sizes, **ends))
    model.stack.load_state_dict(ours.state_dict())
    none_23 = torch.zeros(2, 3, dtype=torch.long)
    padded, mask = (torch.cat([none_23, part], 1) for part in (tokens, torch.ones_like(tokens)))
    with torch.no_grad():
        found = model(tokens, labels=tokens)
        torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.loss, nll)
        before = model(padded, attention_mask=mask).logits[:, 3:]
        torch.testing.assert_close(before, logits, atol=1e-5, rtol=1e-5)
        behind = model(padded.flip(1), attention_mask=mask.flip(1)).logits[:, :9]
        torch.testing.assert_close(behind, turned, atol=1e-5, rtol=1e-5)


def test_what_is_written_names_the_code_and_keeps_the_layout(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_openelm.OpenELMForCausalLM"
    assert set(load_file(folder / "model.safetensors")) == set(foreign_names(3))
    assert (folder / "modeling_openelm.py").read_text() == language_code() and (folder / "tokenizer.json").is_file()
    main(["import", str(folder), str(folder.with_name("again")), "--format", "openelm", "--debug"])
    again, before = (load_language_model(folder.with_name(name))[0] for name in ("again", "model"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])


@needs_transformers
def test_transformers_loads_it_and_gives_the_same_logits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded, how = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not how["missing_keys"] and not how["unexpected_keys"]
    ours, tokenizer = load_language_model(folder.with_name("model"))
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs("The cat sees")["input_ids"] == tokenizer.encode("The cat sees")
    tokens = torch.tensor([[tokenizer.separator, *tokenizer.encode("The cat")]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, ours.logits(tokens), atol=1e-5, rtol=1e-5)
        written = loaded.generate(tokens, max_new_tokens=4, do_sample=False)
    assert written[0, tokens.shape[1] :].tolist() == list(generate(ours, tokens[0].tolist(), 4, temperature=0))
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, loaded(tokens).logits)


@needs_transformers
def test_the_code_runs_released_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    from transformers import AutoModelForCausalLM

    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    weights = released(tmp_path / "in", auto_map=auto_map)
    (tmp_path / "in" / "modeling_openelm.py").write_text(language_code())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "in", trust_remote_code=True)
    tokens = torch.randint(270, (9,), generator=torch.Generator().manual_seed(1))
    shape = dataclasses.replace(TINY, vocabulary=270, heads=HEADS, hidden=HIDDEN)
    expected = reference({ours: weights[theirs] for theirs, ours in foreign_names(3).items()}, shape, tokens)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens[None]).logits[0].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="held to mlx-lm: pip install mlx-lm")
def test_mlx_lm_reads_it_and_gives_the_same_logits(folder: Path) -> None:
    import mlx.core as mx
    import numpy as np
    from mlx_lm.models import openelm

    theirs = openelm.Model(openelm.ModelArgs.from_dict(json.loads((folder / "config.json").read_text())))
    theirs.load_weights(list(mx.load(str(folder / "model.safetensors")).items()), strict=True)
    ours, _ = load_language_model(folder.with_name("model"))
    tokens = torch.randint(290, (2, 12), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        np.testing.assert_allclose(np.array(theirs(mx.array(tokens.numpy()))), ours.logits(tokens), atol=1e-4)
