"""Runs that start from other weights, and the warning of embeddings that collapse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from avpretrain import api
from avpretrain.core.errors import UsageError, UserError
from avpretrain.methods.diffmavil.method import start_from
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.diffmavil.preview import effective_rank
from avpretrain.methods.load import make_method
from tests.support.tiny_runs import final_state, same_bits, tiny_config, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def source(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    model = dataclasses.replace(tiny_config(data, folder).model)
    inputs = dataclasses.replace(model.input, audio_mean=-7.0, audio_std=3.0)
    torch.manual_seed(5)
    DiffMAViL(dataclasses.replace(model, input=inputs)).save_pretrained(folder)
    return folder


def parts_of(model: DiffMAViL, other: DiffMAViL) -> set[str]:
    """Parts in which two models agree."""
    return {
        name for name, part in model.parts().items() if same_bits(part.state_dict(), other.parts()[name].state_dict())
    }


def test_encoders_and_fusion_are_taken_over(data: Path, source: Path, tmp_path: Path) -> None:
    fresh = DiffMAViL(tiny_config(data, tmp_path).model)
    start_from(str(source), fresh)
    assert parts_of(fresh, DiffMAViL.from_pretrained(source)) == {"audio_encoder", "video_encoder", "fusion"}


def test_of_an_imported_model_what_was_imported(data: Path, source: Path, tmp_path: Path) -> None:
    model = DiffMAViL.from_pretrained(source)
    model.save_pretrained(tmp_path / "imported")
    (tmp_path / "imported" / "import.json").write_text(json.dumps({"loaded": {"video_encoder": 10}}))
    fresh = DiffMAViL(tiny_config(data, tmp_path).model)
    start_from(str(tmp_path / "imported"), fresh)
    assert parts_of(fresh, model) == {"video_encoder"}


def test_a_run_starts_there_once_and_resumes(data: Path, source: Path, tmp_path: Path) -> None:
    """A resumed run goes on from its checkpoint, not from where it once started."""
    for name, stops in (("straight", []), ("stopped", [40])):
        cfg = dataclasses.replace(tiny_config(data, tmp_path / name), init=str(source))
        for stop in stops:
            assert not api.train(cfg, stop_at=stop).finished
        assert api.train(cfg).finished
    assert same_bits(final_state(tmp_path / "straight"), final_state(tmp_path / "stopped"))
    afresh = tiny_config(data, tmp_path / "afresh")
    api.train(afresh)
    assert not same_bits(final_state(tmp_path / "straight"), final_state(tmp_path / "afresh"))


def test_its_log_mel_statistics_are_taken_unless_given(data: Path, source: Path, tmp_path: Path) -> None:
    cfg = dataclasses.replace(tiny_config(data, tmp_path / "run"), init=str(source))
    method = make_method(cfg)
    method.open()
    assert (method.cfg.model.input.audio_mean, method.cfg.model.input.audio_std) == (-7.0, 3.0)  # type: ignore[attr-defined]
    own = dataclasses.replace(cfg.model.input, audio_mean=-1.0, audio_std=2.0)
    method = make_method(dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, input=own)))
    method.open()
    assert method.cfg.model.input == own  # type: ignore[attr-defined]


def test_weights_that_do_not_fit_or_are_not_there(data: Path, source: Path, tmp_path: Path) -> None:
    cfg = tiny_config(data, tmp_path / "run", model={"width": 64})
    with pytest.raises(UsageError, match=r"audio_encoder of .* does not fit model"):
        api.train(dataclasses.replace(cfg, init=str(source)))
    with pytest.raises(UserError, match="there is no"):
        api.train(dataclasses.replace(cfg, init=str(tmp_path / "nowhere")))


def test_effective_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(16, 32, generator=generator)
    assert effective_rank(spread) > 12
    assert effective_rank(torch.ones(16, 32) + 1e-9 * spread) == 0.0
    line = torch.linspace(-1, 1, 16)[:, None] * torch.ones(32) + 5
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-3)
    two = torch.cat([torch.eye(2)] * 8) - 0.5
    assert 1.0 <= effective_rank(two) < 2.0
