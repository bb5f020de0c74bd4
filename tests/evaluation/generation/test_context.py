"""The benefit of context: known decoders have known benefits, in the result, the command and the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from avpretrain.cli.main import run
from avpretrain.core.errors import UserError
from avpretrain.core.files import write_json
from avpretrain.evaluation.generation.context import Levels, Worth, levels_of, measure, summary
from avpretrain.evaluation.setup import random_encoder
from avpretrain.measures.results import Estimate
from avpretrain.measures.studies import Benefit, Context
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import SIDES, DiffMAViL
from avpretrain.report.comparison import Comparison
from avpretrain.report.write import render
from tests.methods.diffmavil.test_identity import NOTHING_SHOWN
from tests.support.runs import ORIGIN, write_run
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import random_batch, smooth_batch, tiny


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_decoder_that_reads_its_input_alone_has_no_benefit_and_no_gradient() -> None:
    model = DiffMAViL(tiny("cross"))
    for block in model.tower("audio").decoder.blocks:
        torch.nn.init.zeros_(block.cross_attn.proj.weight)
    worth = measure(model, random_batch(model.cfg), "audio", levels_of(model, "audio", 4), 0.75)
    assert worth.own_NK.shape == (4, 4)
    assert (worth.own_NK == worth.other_NK).all()
    assert not worth.gradient_NK.any()


def test_what_a_model_has_learnt_from_context_is_its_benefit() -> None:
    """Overfitted to a few clips under mask tokens, context is what tells them apart."""
    model = DiffMAViL(tiny("cross", source="mask_token", views=1, loss={"inter": 0.0, "intra": 0.0}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = smooth_batch(model.cfg)
    for _ in range(80):
        optimizer.zero_grad()
        model(batch, MaskRatios(0.75, 0.75))["loss"].backward()
        optimizer.step()
    for side in SIDES:
        worth = measure(model, batch, side, levels_of(model, side, 4), 0.75)
        assert (worth.other_NK - worth.own_NK).mean() > 0.05
        assert worth.gradient_NK.min() > 0


def test_a_denoiser_that_is_shown_nothing_is_measured_as_mavil() -> None:
    mavil = DiffMAViL(tiny(source="mask_token"))
    ours = DiffMAViL(tiny(diffusion=NOTHING_SHOWN))
    weights = mavil.state_dict()
    for side in SIDES:
        weights[f"towers.{side}.decoder.patch_embed.bias"] = weights.pop(f"towers.{side}.decoder.mask_token").flatten()
    ours.load_state_dict(weights, strict=False)
    batch = random_batch(ours.cfg)
    levels = levels_of(ours, "video", 3)
    assert levels.share == (0.0, 0.0, 0.0, 1.0)
    found = measure(ours, batch, "video", levels, 0.75)
    expected = measure(mavil, batch, "video", levels_of(mavil, "video", 3), 0.75)
    for name in ("own_NK", "other_NK", "gradient_NK"):
        pure, mask_token = getattr(found, name)[:, -1], getattr(expected, name)[:, 0]
        assert pure == pytest.approx(mask_token, rel=1e-4)


def test_errors_are_those_of_clean_patches_and_gradients_carry_the_training_weight() -> None:
    model = DiffMAViL(tiny(diffusion={"prediction_type": "edm", "loss_weighting": "noise"}))
    batch, levels = random_batch(model.cfg), levels_of(model, "audio", 5)
    for weight, alpha in zip(levels.weight, levels.alphas_cumprod, strict=True):
        assert weight == pytest.approx(1 - alpha, rel=1e-4)  # 'noise', whatever is predicted
    worth = measure(model, batch, "audio", levels, 0.75)
    plain = measure(model, batch, "audio", dataclasses.replace(levels, weight=(1.0,) * 5), 0.75)
    assert worth.gradient_NK == pytest.approx(plain.gradient_NK * levels.weight, rel=1e-4)
    assert (worth.own_NK == plain.own_NK).all()


def test_levels_are_counted_as_training_draws_them() -> None:
    model = DiffMAViL(tiny(diffusion={"mask_share": 0.25, "timesteps": "logit_normal", "logit_mean": 1.0}))
    levels = levels_of(model, "audio", 10)
    assert levels.timesteps == (49, 149, 249, 349, 449, 549, 649, 749, 849, 949, 1000)
    assert sum(levels.share) == pytest.approx(1.0)
    assert levels.share[-1] == pytest.approx(0.25, abs=0.01)
    assert levels.share[8] > levels.share[2]
    assert levels.alphas_cumprod[-1] == 0


def test_only_clips_that_have_and_borrow_the_modality_count() -> None:
    model = DiffMAViL(tiny())
    batch = dataclasses.replace(random_batch(model.cfg, 5), has_audio_B=torch.tensor([True, False, True, True, True]))
    assert len(measure(model, batch, "audio", levels_of(model, "audio", 2), 0.75).own_NK) == 3
    assert len(measure(model, batch, "video", levels_of(model, "video", 2), 0.75).own_NK) == 5


def test_share_of_draws_that_reach_the_encoder() -> None:
    own, benefit = np.ones((50, 3)), np.tile([0.0, 0.1, 0.4], (50, 1))
    levels = Levels((1, 2, 3), (0.9, 0.5, 0.0), (0.5, 0.25, 0.25), (1.0,) * 3)
    found = summary("diffused", levels, [Worth(own, own + benefit, benefit)], 0)
    assert found.benefit_of_draws.value == pytest.approx(0.125, abs=1e-6)
    assert found.effective_share.value == pytest.approx(0.3125, abs=1e-6)
    assert summary("diffused", levels, [Worth(own, own, benefit)], 0).effective_share.value is None


# --- command and report ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    specs = [Spec(seconds=1.0, split="val", size=(32, 32)) for _ in range(5)]
    alone = [Spec(seconds=1.0, split="test", size=(32, 32))]
    return str(make_dataset(tmp_path_factory.mktemp("data") / "set", [*specs, *alone]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_encoder(tiny(diffusion={"mask_share": 0.5}), seed=3).save_pretrained(folder)
    return folder


def test_command(checkpoint: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "context.json"
    args = [str(checkpoint), data, "--out", str(out), "--levels", "3", "--num-workers", "0", "--batch-size", "4"]
    run("context", [*args, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == result
    assert result["clips"] == {"audio": 4, "video": 4}  # the fifth is alone in its batch
    for side in SIDES:
        found = result["sides"][side]
        assert len(found["timesteps"]) == len(found["benefit"]) == len(found["gradient"]) == 4
        assert found["benefit_of_draws"]["ci"][0] <= found["benefit_of_draws"]["value"]
    run("context", args)
    assert "mean over draws: benefit" in " ".join(capsys.readouterr().out.split())


def test_a_clip_alone_is_an_error(checkpoint: Path, data: str) -> None:
    with pytest.raises(UserError, match="too few clips"):
        run("context", [str(checkpoint), data, "--split", "test", "--num-workers", "0"])


def write_context(run_dir: Path, benefits: list[float], timesteps: list[int]) -> None:
    mean, one = sum(benefits) / len(benefits), (1.0,) * len(benefits)
    benefit = Benefit(
        input="diffused", timesteps=tuple(timesteps), alphas_cumprod=one, share=one, weight=one, error_own=one,
        error_other=one, benefit=tuple(benefits), gradient=one, gradient_of_draws=1.0,
        benefit_of_draws=Estimate(value=mean, ci=(mean - 0.01, mean + 0.01)), effective_share=Estimate(value=1.0),
    )  # fmt: skip
    context = Context(label="val", clips={"audio": 4}, sides={"audio": benefit}, settings={}, **ORIGIN)
    write_json(run_dir / "eval" / "context_val.json", context.to_json())


def test_report_draws_context_of_the_runs_that_have_it(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "mavil-s0", name="mavil-s0", seed=0)]
    paths += [write_run(tmp_path / f"d-s{s}", "tiny_diffmavil", name=f"d-s{s}", seed=s) for s in range(2)]
    assert 'id="context"' not in render(Comparison.of(paths))
    write_context(paths[0], [0.12], [1000])
    write_context(paths[1], [0.0, 0.02, 0.04], [100, 500, 900])
    write_context(paths[2], [0.0, 0.04, 0.08], [100, 500, 900])
    page = render(Comparison.of(paths))
    section = page[page.index('id="context"') :]
    section = section[: section.index("</section>")]
    assert section.count("<polyline") == 2
    assert "0.120" in section
    assert "0.030" in section  # the mean of both seeds


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "mavil")
    (path / "eval" / "context_val.json").write_text("{}")
    with pytest.raises(
        UserError,
        match=r"context_val.json holds no context .*'format' is missing",
    ):
        render(Comparison.of([path]))
