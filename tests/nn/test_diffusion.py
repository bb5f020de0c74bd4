"""The forward process against diffusers, and its targets against one another."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from avpretrain.config.model import DiffusionConfig
from avpretrain.nn.diffusion import ForwardProcess, make_betas, make_scheduler


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
    expected = DDPMScheduler(1000).get_velocity(clean, noise, t)
    torch.testing.assert_close(ForwardProcess(cfg).target(clean, noise, t), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction", "edm"])
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
    scheduler = DDIMScheduler(1000, prediction_type=kind, clip_sample=False)
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


# --- the process in our own words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1, 50, 1000])
def test_betas_equal_diffusers(schedule: str, steps: int) -> None:
    expected = DDPMScheduler(steps, beta_schedule=schedule).betas
    ours = torch.from_numpy(make_betas(DiffusionConfig(beta_schedule=schedule, num_train_timesteps=steps)))
    torch.testing.assert_close(ours, expected, atol=0, rtol=1e-6)
    if steps > 1:
        strict = DDPMScheduler(steps, beta_schedule=schedule, rescale_betas_zero_snr=True).alphas_cumprod
        cfg = DiffusionConfig(beta_schedule=schedule, num_train_timesteps=steps, zero_terminal_snr=True)
        torch.testing.assert_close(ForwardProcess(cfg).alphas_cumprod_T, strict, atol=1e-5, rtol=1e-4)


def test_training_imports_no_diffusers() -> None:
    """It costs seconds a process; sampling alone needs it."""
    code = (
        "import sys; from avpretrain.nn.diffusion import ForwardProcess;"
        "from avpretrain.config.model import DiffusionConfig;"
        "ForwardProcess(DiffusionConfig(rho=2.0)); sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("shift", [0.5, 3.0, 16.0])
@pytest.mark.parametrize("more", [{}, {"rho": 2.0}, {"zero_terminal_snr": True}])
def test_a_shift_divides_the_snr_by_its_square(shift: float, more: dict[str, Any]) -> None:
    cfg = DiffusionConfig(**more)
    plain, ours = (ForwardProcess(cfg, s).alphas_cumprod_T.double() for s in (1.0, shift))
    torch.testing.assert_close(ours / (1 - ours), plain / (1 - plain) / shift**2, atol=1e-9, rtol=2e-2)
    # t' = s t / (1 + (s - 1) t) in rectified flow, where noise stands to signal as t to 1 - t (SD3, equation 23)
    flow, shifted = ((1 - a).sqrt() / ((1 - a).sqrt() + a.sqrt()) for a in (plain, ours))
    torch.testing.assert_close(shifted, shift * flow / (1 + (shift - 1) * flow), atol=1e-3, rtol=0)
    torch.testing.assert_close(make_scheduler(cfg, shift=shift).alphas_cumprod.double(), ours, atol=1e-7, rtol=0)


# --- timesteps -------------------------------------------------------------------------------------------------------


def timesteps(clips: int = 20_000, patches: int = 1, **cfg: Any) -> torch.Tensor:
    process = ForwardProcess(DiffusionConfig(**cfg))
    return process.draw_timesteps(torch.arange(clips), "audio_0", patches)


def test_uniform_timesteps_are_those_of_older_versions() -> None:
    assert timesteps(4).tolist() == [531, 252, 154, 757]
    t = timesteps()
    assert (t.min(), t.max()) == (0, 999)
    assert t.double().mean() == pytest.approx(499.5, abs=8)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5), (-0.5, 2.0)])
def test_logit_normal_timesteps(mean: float, std: float) -> None:
    t = timesteps(timesteps="logit_normal", logit_mean=mean, logit_std=std)
    assert 0 <= t.min() <= t.max() <= 999
    logit = torch.logit((t.double() + 0.5) / 1000)
    assert logit.quantile(0.5) == pytest.approx(mean, abs=0.06)
    spread = (logit.quantile(0.8413) - logit.quantile(0.1587)) / 2
    assert spread == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_draws_is_pure_noise(distribution: str, share: float) -> None:
    t = timesteps(timesteps=distribution, mask_share=share)
    assert (t == 1000).double().mean() == pytest.approx(share, abs=0.02)
    process = ForwardProcess(DiffusionConfig(mask_share=share))
    assert process.last == (1000 if share else 999)
    clean, noise, _ = draw(2)
    if share:
        assert torch.equal(process.add_noise(clean, noise, torch.tensor([1000, 1000])), noise)


def test_each_patch_has_its_own_timestep() -> None:
    t = timesteps(2000, 8, noise_level="patch")
    assert t.shape == (2000, 8)
    assert abs(torch.corrcoef(t.T.double())[0, 1]) < 0.1
    assert torch.equal(t[5:6], ForwardProcess(DiffusionConfig(noise_level="patch")).draw_timesteps(
        torch.tensor([5]), "audio_0", 8))  # fmt: skip
    process = ForwardProcess(DiffusionConfig(prediction_type="edm", input_scale="unit", noise_level="patch"))
    clean, noise = torch.randn(3, 8, 4), torch.randn(3, 8, 4)
    x_t = process.add_noise(clean, noise, t[:3])
    one = process.add_noise(clean[:, 2:3], noise[:, 2:3], t[:3, 2])
    assert torch.equal(x_t[:, 2:3], one)
    torch.testing.assert_close(process.clean(process.target(clean, noise, t[:3]), x_t, t[:3]), clean, atol=1e-4, rtol=0)


# --- input, skip, output and weight ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_by_its_own_table(sigma_data: float) -> None:
    """Karras et al. 2022, table 1, in their variables: x = x_0 + sigma n, where ours is sqrt(a) x."""
    process = ForwardProcess(DiffusionConfig(prediction_type="edm", input_scale="unit", sigma_data=sigma_data))
    clean, noise, t = draw()
    a = process.alphas_cumprod_T[t][:, None, None]
    sigma = ((1 - a) / a).sqrt()
    x, x_t = clean + sigma * noise, process.add_noise(clean, noise, t)
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt()
    near = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(process.scale_input(x_t, t), c_in * x, **near)
    output = torch.randn(clean.shape)
    torch.testing.assert_close(process.clean(output, x_t, t), c_skip * x + c_out * output, **near)
    torch.testing.assert_close(process.target(clean, noise, t), (clean - c_skip * x) / c_out, atol=2e-2, rtol=1e-3)


def test_edm_at_unit_variance_is_velocity() -> None:
    clean, noise, t = draw()
    edm, v = (ForwardProcess(DiffusionConfig(prediction_type=kind)) for kind in ("edm", "v_prediction"))
    torch.testing.assert_close(edm.target(clean, noise, t), -v.target(clean, noise, t))


def test_the_input_scaled_by_its_signal_is_nothing_at_pure_noise() -> None:
    clean, noise, _ = draw(2)
    process = ForwardProcess(DiffusionConfig(input_scale="signal", mask_share=0.5))
    t = torch.tensor([1000, 1000])
    scaled = process.scale_input(process.add_noise(clean, noise, t), t)
    assert torch.equal(scaled, torch.zeros_like(scaled))


WEIGHTS = {
    "clean": lambda a: torch.ones_like(a),
    "noise": lambda a: 1 - a,
    "min_snr": lambda a: (a / (1 - a)).clamp(max=5),
    "snr": lambda a: a / (1 - a),
    "truncated_snr": lambda a: (a / (1 - a)).clamp(min=1),
    "edm": lambda a: (1 / (1 - a)) / 0.25 * (1 - a + 0.25 * a),
}


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction", "edm"])
@pytest.mark.parametrize("weighting", list(WEIGHTS))
def test_weights_are_those_of_the_clean_patch_whatever_is_predicted(kind: str, weighting: str) -> None:
    process = ForwardProcess(DiffusionConfig(prediction_type=kind, loss_weighting=weighting, sigma_data=0.5)).double()
    clean, noise, t = (x.double() if x.is_floating_point() else x for x in draw(4))
    x_t, target = process.add_noise(clean, noise, t), process.target(clean, noise, t)
    output = target + 0.1
    error = (output - target).square().mean(dim=(1, 2)) * process.loss_weight(t)
    clean_error = (process.clean(output, x_t, t) - clean).square().mean(dim=(1, 2))
    torch.testing.assert_close(error, clean_error * WEIGHTS[weighting](process.alphas_cumprod_T[t]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("kind", "weighting"), [("sample", "clean"), ("epsilon", "snr"), ("edm", "edm")])
def test_uniform_weights_name_a_weighting(kind: str, weighting: str) -> None:
    t = torch.arange(0, 1000, 37)
    both = [ForwardProcess(DiffusionConfig(prediction_type=kind, loss_weighting=w)) for w in ("uniform", weighting)]
    torch.testing.assert_close(both[0].loss_weight(t), both[1].loss_weight(t))


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "edm"])
@pytest.mark.parametrize("weighting", ["uniform", *WEIGHTS])
def test_weights_are_finite_at_pure_noise(kind: str, weighting: str) -> None:
    process = ForwardProcess(DiffusionConfig(prediction_type=kind, loss_weighting=weighting, mask_share=1.0))
    assert process.loss_weight(torch.tensor([1000, 0])).isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"audio_shift": 0.0}, "audio_shift"),
        ({"mask_share": 1.5}, "mask_share"),
        ({"mask_share": 0.5, "prediction_type": "epsilon"}, "epsilon"),
        ({"noise_level": "patch", "time_conditioning": "adaln"}, "noise_level"),
        ({"logit_std": -1.0}, "logit_std"),
        ({"sigma_data": 0.0}, "sigma_data"),
    ],
)
def test_impossible_designs_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DiffusionConfig(**wrong)
