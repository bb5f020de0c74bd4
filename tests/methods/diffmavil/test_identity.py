"""The identity check of the method: a denoiser that is shown nothing of a patch is MAViL, to the last gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.nn.diffusion import ForwardProcess
from tests.support.tiny_models import random_batch, tiny

NOTHING_SHOWN: dict[str, Any] = {
    "mask_share": 1.0,  # alpha_bar is 0 at every step that is drawn
    "input_scale": "signal",
    "time_conditioning": "none",
}
"""The config under which DiffMAViL is MAViL; weights are 1 by default."""


def pair(kind: str, objective: dict[str, Any], **design: Any) -> tuple[DiffMAViL, DiffMAViL]:
    """MAViL, and a denoiser with its weights whose patch embedding's bias is its mask token."""
    torch.manual_seed(0)
    mavil = DiffMAViL(tiny(kind=kind, source="mask_token", **objective))
    ours = DiffMAViL(tiny(kind=kind, source="diffused", diffusion={**NOTHING_SHOWN, **design}, **objective))
    weights = mavil.state_dict()
    for side in ("audio", "video"):
        weights[f"towers.{side}.decoder.patch_embed.bias"] = weights.pop(f"towers.{side}.decoder.mask_token").flatten()
        weights[f"towers.{side}.decoder.patch_embed.weight"] = ours.state_dict()[
            f"towers.{side}.decoder.patch_embed.weight"
        ]
    ours.load_state_dict(weights)
    return mavil, ours


def losses_and_gradients(model: DiffMAViL) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    losses = model(random_batch(model.cfg), MaskRatios(0.75, 0.75))
    losses["loss"].backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and ".decoder." not in n}
    gradients |= {
        side: decoder.patch_embed.bias.grad if decoder.mask_token is None else decoder.mask_token.grad.flatten()
        for side, decoder in (("audio", model.tower("audio").decoder), ("video", model.tower("video").decoder))
    }
    return losses, gradients


@pytest.mark.parametrize("kind", ["joint", "cross_self", "cross"])
@pytest.mark.parametrize("prediction", ["sample", "edm"])
@pytest.mark.parametrize("level", ["clip", "patch"])
@pytest.mark.parametrize("objective", [{}, {"loss": {"norm_pix_loss": False}}])
def test_a_denoiser_that_is_shown_nothing_is_mavil(
    kind: str, prediction: str, level: str, objective: dict[str, Any]
) -> None:
    mavil, ours = pair(kind, objective, prediction_type=prediction, noise_level=level)
    (expected, expected_gradients), (found, gradients) = losses_and_gradients(mavil), losses_and_gradients(ours)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)
    assert expected_gradients.keys() == gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["joint", "cross"])
def test_both_learn_the_same(kind: str) -> None:
    """Ten updates on, encoders are the same: nothing of a patch enters through the embedding's weights."""
    mavil, ours = pair(kind, {})
    for model in (mavil, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(10):
            optimizer.zero_grad()
            model(random_batch(model.cfg, seed=step), MaskRatios(0.75, 0.75))["loss"].backward()
            optimizer.step()
    for name, weight in mavil.audio_encoder.state_dict().items():
        torch.testing.assert_close(ours.audio_encoder.state_dict()[name], weight, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "design", [{"mask_share": 0.9}, {"input_scale": "none"}, {"input_scale": "unit"}, {"time_conditioning": "added"}]
)
def test_each_part_of_the_identity_is_needed(design: dict[str, Any]) -> None:
    torch.manual_seed(0)
    mavil = DiffMAViL(tiny(source="mask_token"))
    ours = DiffMAViL(tiny(source="diffused", diffusion={**NOTHING_SHOWN, **design}))
    weights = mavil.state_dict()
    for side in ("audio", "video"):
        weights[f"towers.{side}.decoder.patch_embed.bias"] = weights.pop(f"towers.{side}.decoder.mask_token").flatten()
    ours.load_state_dict(weights, strict=False)
    batch = random_batch(mavil.cfg, clips=16)
    with torch.no_grad():
        difference = mavil(batch, MaskRatios(0.75, 0.75))["loss"] - ours(batch, MaskRatios(0.75, 0.75))["loss"]
    assert abs(difference) > 1e-4


@pytest.mark.parametrize(
    "design",
    [
        {"prediction_type": "edm", "input_scale": "signal", "loss_weighting": "noise", "audio_shift": 3.0},
        {"noise_level": "patch", "mask_share": 0.5, "timesteps": "logit_normal"},
        {"prediction_type": "edm", "input_scale": "unit", "sigma_data": 0.5, "video_shift": 8.0},
    ],
)
def test_a_clips_loss_depends_on_its_seed_alone(design: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = DiffMAViL(tiny(diffusion=design, loss={"inter": 0.0, "intra": 0.0}))
    whole = random_batch(model.cfg, 4)
    parts = [type(whole)(**{name: value[i : i + 1] for name, value in vars(whole).items()}) for i in range(4)]
    with torch.no_grad():
        together = model(whole, MaskRatios(0.75, 0.75))["reconstruction_video"]
        alone = torch.stack([model(part, MaskRatios(0.75, 0.75))["reconstruction_video"] for part in parts]).mean()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_sides_are_shifted_apart() -> None:
    model = DiffMAViL(tiny(diffusion={"audio_shift": 2.0, "video_shift": 5.0}))
    expected = [ForwardProcess(model.cfg.diffusion, shift).alphas_cumprod_T for shift in (2.0, 5.0)]
    assert torch.equal(model.tower("audio").process.alphas_cumprod_T, expected[0])
    assert torch.equal(model.tower("video").process.alphas_cumprod_T, expected[1])
