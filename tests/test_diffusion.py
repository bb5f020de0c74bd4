"""The forward process against diffusers, and its targets against one another."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from avpretrain.diffusion import ForwardProcess, make_scheduler
from avpretrain.modelconfig import DiffusionConfig


def draw(clips: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(clips, 5, 7), torch.randn(clips, 5, 7), torch.tensor([0, 1, 250, 500, 998, 999])[:clips]


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_noising_equals_diffusers(schedule: str) -> None:
    clean, noise, t = draw()
    expected = DDPMScheduler(1000, beta_schedule=schedule).add_noise(clean, noise, t)
    ours = ForwardProcess(DiffusionConfig(beta_schedule=schedule)).add_noise(clean, noise, t)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rho", [0.5, 0.8, 2.0])
def test_alphas_cumprod_are_raised_to_rho(schedule: str, rho: float) -> None:
    plain = DDPMScheduler(1000, beta_schedule=schedule).alphas_cumprod
    ours = ForwardProcess(DiffusionConfig(beta_schedule=schedule, rho=rho)).alphas_cumprod_T
    torch.testing.assert_close(ours, plain**rho, atol=1e-5, rtol=1e-3)
    assert (ours > plain).all() if rho < 1 else (ours < plain).all()


def test_velocity_equals_diffusers() -> None:
    clean, noise, t = draw()
    cfg = DiffusionConfig(prediction_type="v_prediction")
    expected = make_scheduler(cfg).get_velocity(clean, noise, t)
    torch.testing.assert_close(ForwardProcess(cfg).target(clean, noise, t), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_a_perfect_prediction_gives_back_the_clean_patch(kind: str, schedule: str) -> None:
    clean, noise, t = draw(4)
    process = ForwardProcess(DiffusionConfig(prediction_type=kind, beta_schedule=schedule))
    noisy = process.add_noise(clean, noise, t)
    torch.testing.assert_close(process.clean(process.target(clean, noise, t), noisy, t), clean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
def test_implied_clean_patch_equals_the_schedulers(kind: str) -> None:
    output, noisy, _ = draw(1)
    cfg = DiffusionConfig(prediction_type=kind)
    scheduler = make_scheduler(cfg, "ddim")
    scheduler.set_timesteps(1000)
    expected = scheduler.step(output, 500, noisy).pred_original_sample
    ours = ForwardProcess(cfg).clean(output, noisy, torch.tensor([500]))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_without_noise_the_input_is_the_clean_patch() -> None:
    clean, noise, t = draw()
    process = ForwardProcess(DiffusionConfig())
    process.alphas_cumprod_T.fill_(1.0)
    assert torch.equal(process.add_noise(clean, noise, t), clean)


def test_what_is_left_of_a_patch_at_the_last_timestep() -> None:
    clean, noise, _ = draw(1)
    last = torch.tensor([999])
    plain = ForwardProcess(DiffusionConfig())
    assert 0.0062 < plain.alphas_cumprod_T[-1].sqrt() < 0.0065
    strict = ForwardProcess(DiffusionConfig(zero_terminal_snr=True))
    assert torch.equal(strict.add_noise(clean, noise, last), noise)
    assert strict.alphas_cumprod_T[0] == pytest.approx(plain.alphas_cumprod_T[0].item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
def test_min_snr_weights_the_clean_error_by_the_clipped_snr(kind: str) -> None:
    """Whatever is predicted, the weighted loss is min(SNR, 5) times the error of the clean patch (Hang et al. 2023)."""
    process = ForwardProcess(DiffusionConfig(prediction_type=kind, loss_weighting="min_snr"))
    clean, noise, t = draw(4)
    noisy, target = process.add_noise(clean, noise, t), process.target(clean, noise, t)
    output = target + 0.1
    error = (output - target).square().mean(dim=(1, 2)) * process.loss_weight(t)
    clean_error = (process.clean(output, noisy, t) - clean).square().mean(dim=(1, 2))
    a = process.alphas_cumprod_T[t]
    torch.testing.assert_close(error, clean_error * (a / (1 - a)).clamp(max=5), rtol=1e-2, atol=1e-6)


def test_uniform_weights_are_one() -> None:
    assert torch.equal(ForwardProcess(DiffusionConfig()).loss_weight(torch.arange(5)), torch.ones(5))


def test_schedulers_sample_from_the_last_timestep_on() -> None:
    for kind, cls in (("ddpm", DDPMScheduler), ("ddim", DDIMScheduler)):
        scheduler = make_scheduler(DiffusionConfig(), kind)
        scheduler.set_timesteps(10)
        assert isinstance(scheduler, cls)
        assert scheduler.timesteps[0] == 999
        assert len(scheduler.timesteps) == 10


def test_epsilon_is_refused_where_the_last_timestep_is_all_noise() -> None:
    with pytest.raises(ValueError, match="zero_terminal_snr"):
        DiffusionConfig(zero_terminal_snr=True, prediction_type="epsilon")
