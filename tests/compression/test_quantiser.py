from __future__ import annotations

import pytest
import torch
from torch import nn

from avpretrain.compression import moments
from avpretrain.compression.precondition import absorb_bias, equalise, fold_batchnorm, input_ranges
from avpretrain.compression.quantiser import min_max_grid
from avpretrain.compression.walk import OutputStats
from avpretrain.core.errors import UsageError


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_quantiser_is_torchs_own(bits: int) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(bits)) * torch.rand(6, 1, 1, 1)
    last = 2**bits - 1
    grid = min_max_grid(weight, bits, per_channel=False)
    theirs = torch.fake_quantize_per_tensor_affine(weight, float(grid.scale), int(grid.zero_point), 0, last)
    assert torch.equal(grid.quantise(weight), theirs)
    grid = min_max_grid(weight, bits, per_channel=True)
    theirs = torch.fake_quantize_per_channel_affine(weight, grid.scale, grid.zero_point, 0, 0, last)
    assert torch.equal(grid.quantise(weight), theirs)
    assert len(theirs[0].unique()) <= 2**bits


def test_gradient_is_torchs_own() -> None:
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    grid = min_max_grid(weight, 4, per_channel=True, shrink=0.5)
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    grid.quantise(ours).square().sum().backward()
    torch.fake_quantize_per_channel_affine(theirs, grid.scale, grid.zero_point, 0, 0, 15).square().sum().backward()
    assert 0.4 < float((theirs.grad != 0).float().mean()) < 1
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_error_falls_with_bits_and_is_none_at_32() -> None:
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(0))
    for per_channel in (False, True):
        errors = [
            float((min_max_grid(weight, bits, per_channel).quantise(weight) - weight).square().mean())
            for bits in (2, 3, 4, 5, 6, 8, 12, 32)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] == 0 < errors[-2]


@pytest.mark.parametrize("bits", [0, 1, 17, 64])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match=f"got {bits}"):
        min_max_grid(torch.ones(2, 2), bits, per_channel=False)


@pytest.mark.parametrize("name", ["relu", "relu6"])
def test_moments_against_monte_carlo(name: str) -> None:
    mean, std = torch.tensor([-2.0, -0.3, 0.0, 1.0, 5.0, 8.0]), torch.tensor([1.0, 0.5, 2.0, 3.0, 1.5, 1.0])
    x = mean + std * torch.randn(400_000, 6, generator=torch.Generator().manual_seed(0))
    y = getattr(nn.functional, name)(x)
    first, variance = getattr(moments, name)(mean, std)
    torch.testing.assert_close(first, y.mean(0), rtol=0.01, atol=0.01)
    torch.testing.assert_close(variance, y.var(0), rtol=0.02, atol=0.005)


def test_quadrature_of_a_smooth_function() -> None:
    mean, std = torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 2.0])
    first, variance = moments.of_function(torch.square, mean, std)  # E = m^2 + s^2, var = 2 s^4 + 4 m^2 s^2
    torch.testing.assert_close(first, torch.tensor([1.25, 8.0]))
    torch.testing.assert_close(variance, torch.tensor([1.125, 96.0]))


class Chain(nn.Module):
    """conv, depthwise conv, conv, each with its norm, two ReLUs; a linear at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(0)
    net = Chain()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3)
    return net.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def test_fold_and_equalise_leave_the_function(chain: Chain) -> None:
    x = torch.randn(5, 3, 12, 12)
    before = chain(x)
    assert fold_batchnorm(chain) == []
    assert not [m for m in chain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert relative(chain(x), before) < 1e-5
    missed = equalise(chain)
    assert relative(chain(x), before) < 1e-5
    first, second = chain.body[0], chain.body[3]
    torch.testing.assert_close(first.weight.flatten(1).abs().amax(1), input_ranges(second), rtol=1e-3, atol=1e-6)
    assert missed == ["body.6: AdaptiveAvgPool2d follows it", "body.11: output follows it"]


@torch.no_grad()
def test_absorbed_bias_moves_the_distribution_and_keeps_the_function() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), OutputStats(torch.full((8,), 9.0), torch.ones(8)), nn.ReLU(), nn.Linear(8, 3))
    net[0].weight.mul_(1 / net[0].weight.norm(dim=1, keepdim=True))
    net[0].bias.fill_(9.0)
    x = torch.randn(2000, 16)
    before = net(x)
    assert absorb_bias(net) == ["3: output follows it"]
    torch.testing.assert_close(net[0].bias, torch.full((8,), 3.0))
    torch.testing.assert_close(net[1].mean, torch.full((8,), 3.0))
    assert relative(net(x), before) < 1e-3  # what lies below three standard deviations


def test_a_norm_without_its_layer_is_named() -> None:
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)).eval()
    assert fold_batchnorm(net) == ["1: no linear layer or convolution of its own before it"]


@torch.no_grad()
def test_padding_takes_no_bias() -> None:
    torch.manual_seed(0)
    stats = OutputStats(torch.full((4,), 9.0), torch.ones(4))
    net = nn.Sequential(nn.Conv2d(2, 4, 1), stats, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    net[0].bias.fill_(9.0)
    x = torch.randn(5, 2, 2, 2)
    before = net(x)
    assert "3: absorbs no bias, for it pads with zeros" in absorb_bias(net)
    assert relative(net(x), before) < 1e-5
