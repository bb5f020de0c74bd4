from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from avpretrain.compression.inputs import (
    IndependentInputs,
    InputMoments,
    LayerNormInputs,
    PropagatedInputs,
    RealInputs,
    feeds,
    norm_moment_error,
    unfold,
)  # fmt: skip
from avpretrain.compression.precondition import fold_batchnorm
from avpretrain.compression.quantiser import min_max_grid
from avpretrain.compression.solve import Solution, best_grid, output_error, prune, quantise
from avpretrain.compression.walk import OutputStats
from avpretrain.core.errors import UsageError
from avpretrain.nn.layers import Block, init_weights


def independent(width: int, seed: int = 0) -> InputMoments:
    g = torch.Generator().manual_seed(seed)
    return InputMoments(
        torch.randn(1, width, generator=g), torch.diag(torch.rand(width, generator=g) * 3)[None], "test"
    )


def correlated(width: int, seed: int = 0) -> InputMoments:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width // 2, generator=g)
    return InputMoments(torch.randn(1, width, generator=g), (mix @ mix.T + 0.05 * torch.eye(width))[None], "test")


@pytest.mark.parametrize("shape", [(5, 7), (6, 4, 3, 3), (6, 1, 3, 3), (6, 2, 3, 3)])
def test_error_by_moments_is_the_error_of_the_layer(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    groups = {(6, 1, 3, 3): 6, (6, 2, 3, 3): 2}.get(shape, 1)
    if len(shape) == 2:
        layer: nn.Module = nn.Linear(shape[1], shape[0])
        x = torch.randn(300, shape[1]) * torch.rand(shape[1])
    else:
        layer = nn.Conv2d(shape[1] * groups, shape[0], 3, padding=1, stride=2, groups=groups)
        x = torch.randn(8, shape[1] * groups, 9, 9).relu()
    assert layer.weight.shape == shape
    inputs = RealInputs([lambda m: m(x)]).moments(layer)[0][""]
    change = torch.randn(shape)
    shift = torch.randn(shape[0])
    with torch.no_grad():
        before = layer(x)
        layer.weight += change
        layer.bias += shift
        moved = (layer(x) - before).square()
    measured = moved.mean(dim=0 if len(shape) == 2 else (0, 2, 3))
    torch.testing.assert_close(output_error(change, inputs, shift), measured, rtol=1e-3, atol=1e-4)


LAYERS = {
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "whole": lambda: nn.Conv2d(6, 5, 3, padding=1, stride=2),
    "linear": lambda: nn.Linear(12, 7),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_calibrated_layer_is_never_worse_than_a_naive_one_on_its_own_inputs(name: str) -> None:
    """By the layer's own output, on images whose columns differ: 32,768 rows, more than a look at some of them sees."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    if isinstance(layer, nn.Linear):
        x = torch.randn(40, 30, 12) @ torch.randn(12, 12) + 2
    else:
        x = torch.nn.functional.avg_pool2d(torch.randn(32, 6, 32, 32), 3, 1, 1) * torch.linspace(3, 0.1, 32) + 0.5
    inputs = RealInputs([lambda m: m(x)]).moments(layer)[0][""]
    weight, bias, before = layer.weight.clone(), layer.bias.clone(), layer(x)

    def error(solution: Solution) -> float:
        layer.weight.copy_(solution.weight)
        layer.bias.copy_(solution.bias)
        return float((layer(x) - before).square().mean())

    for per_channel, bits in itertools.product((False, True), (8, 4, 3)):
        naive = error(quantise(weight, bias, None, bits, per_channel, "naive"))
        for solver in ("closed", "ste"):
            with torch.enable_grad():
                solution = quantise(weight, bias, inputs, bits, per_channel, solver, 60)
            assert error(solution) <= naive * 1.001
            assert error(solution) == pytest.approx(solution.error, rel=0.02)
    for sparsity in (0.3, 0.6, 0.9):
        magnitude = error(prune(weight, bias, None, sparsity))
        solution = prune(weight, bias, inputs, sparsity)
        assert error(solution) < magnitude * 0.9
        assert error(solution) == pytest.approx(solution.error, rel=0.02)


def test_rounding_is_the_best_on_a_grid_for_independent_inputs() -> None:
    inputs, weight = independent(4), torch.randn(1, 4, generator=torch.Generator().manual_seed(3))
    grid = min_max_grid(weight, 2, per_channel=False)
    points = [(q - float(grid.zero_point)) * float(grid.scale) for q in range(4)]
    every = torch.tensor(list(itertools.product(points, repeat=4)))
    errors = [float(output_error(w[None] - weight, inputs)) for w in every]
    chosen = quantise(weight, None, inputs, 2, False, grid=grid)
    assert chosen.error == pytest.approx(min(errors))


@pytest.mark.parametrize("bits", [3, 4])
def test_ste_agrees_with_the_closed_form_where_that_is_exact(bits: int) -> None:
    weight, inputs = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), independent(16)
    closed, ste = (quantise(weight, None, inputs, bits, True, solver) for solver in ("closed", "ste"))
    torch.testing.assert_close(ste.weight, closed.weight)
    torch.testing.assert_close(ste.bias, closed.bias)


def test_ste_gains_where_inputs_are_correlated() -> None:
    weight, inputs = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), correlated(16)
    closed, ste = (quantise(weight, None, inputs, 3, True, solver) for solver in ("closed", "ste"))
    assert ste.error < 0.8 * closed.error
    grid = best_grid(weight, inputs, 3, True)
    torch.testing.assert_close(grid.quantise(ste.weight), ste.weight)  # it lies on the grid


def test_corrected_bias_keeps_the_mean_and_a_chosen_grid_is_no_worse() -> None:
    weight, inputs = torch.randn(8, 32, generator=torch.Generator().manual_seed(2)), independent(32)
    naive, closed = (quantise(weight, torch.ones(8), inputs, 4, False, s) for s in ("naive", "closed"))
    assert closed.error < naive.error
    mean = inputs.mean_GI[0]
    torch.testing.assert_close(closed.weight @ mean + closed.bias, weight @ mean + 1)
    assert torch.equal(naive.bias, torch.ones(8))


def test_32_bits_change_nothing() -> None:
    weight, inputs = torch.randn(4, 8), correlated(8)
    for solver in ("naive", "closed", "ste"):
        out = quantise(weight, None, inputs, 32, True, solver)
        assert torch.equal(out.weight, weight) and out.error == 0


def test_pruning_scaled_and_reoptimised_is_better_than_magnitude() -> None:
    weight, inputs = torch.randn(8, 32, generator=torch.Generator().manual_seed(2)), correlated(32)
    magnitude = prune(weight, None, inputs, 0.5, "magnitude", reoptimise=False)
    scaled = prune(weight, None, inputs, 0.5, "scaled", reoptimise=False)
    solved = prune(weight, None, inputs, 0.5, "scaled")
    best = prune(weight, None, inputs, 0.5)
    assert best.error < solved.error < scaled.error < magnitude.error
    for out in (magnitude, scaled, solved, best):
        assert int((out.weight == 0).sum()) == 128
    assert torch.equal(prune(weight, None, inputs, 0.0).weight, weight)


def test_survivors_are_those_of_least_squares() -> None:
    weight, inputs = torch.randn(3, 10, generator=torch.Generator().manual_seed(2)), correlated(10)
    solved = prune(weight, None, inputs, 0.4, "magnitude")
    C = inputs.covariance_GII[0].double()
    for row, out in zip(weight.double(), solved.weight.double(), strict=True):
        kept = out != 0
        expected = row[kept] + torch.linalg.solve(C[kept][:, kept], C[kept][:, ~kept] @ row[~kept])
        change, best = out - row, torch.zeros_like(row).masked_scatter(kept, expected) - row
        assert float(change @ C @ change) <= 1.001 * float(best @ C @ best)


def test_scaled_score_is_the_best_mask_for_independent_inputs() -> None:
    weight, inputs = torch.randn(1, 6, generator=torch.Generator().manual_seed(5)), independent(6)
    errors = []
    for gone in itertools.combinations(range(6), 3):
        change = torch.zeros(1, 6)
        change[:, gone] = -weight[:, gone]
        errors.append(float(output_error(change, inputs)))
    assert prune(weight, None, inputs, 0.5).error == pytest.approx(min(errors), rel=1e-4)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50, float("nan")])
def test_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(UsageError, match="--sparsity"):
        prune(torch.ones(2, 2), None, None, sparsity)


class Residual(nn.Module):
    """A stem, a residual branch, an average pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.mix = nn.Conv2d(6, 5, 1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.mix(x + self.branch(x)).relu()
        return self.head(torch.flatten(self.pool(x), 1))


@pytest.fixture(scope="module")
def residual() -> Residual:
    """In training mode it has seen N(0, 1), so that its statistics are those of that input."""
    torch.manual_seed(0)
    net = Residual()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(16, 2, 8, 8))
    net.eval()
    assert fold_batchnorm(net) == []
    return net


def test_statistics_along_the_graph_against_samples(residual: Residual) -> None:
    known, missed = IndependentInputs(torch.zeros(1, 2, 8, 8)).moments(residual)
    assert missed == []
    runs = [lambda m: m(torch.randn(64, 2, 8, 8))] * 5
    real, _ = RealInputs(runs).moments(residual)
    assert set(known) == {"stem.0", "branch.0", "mix", "head"}
    for name in ("stem.0", "branch.0"):
        torch.testing.assert_close(known[name].mean_GI, real[name].mean_GI, rtol=0.15, atol=0.08)
        torch.testing.assert_close(known[name].std_GI, real[name].std_GI, rtol=0.15, atol=0.08)
    assert bool((known["head"].std_GI > 0).all())  # what is pooled over all of space still varies
    torch.testing.assert_close(known["mix"].mean_GI, real["mix"].mean_GI, rtol=0.15, atol=0.1)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_padding_counts_in_small_maps(stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, stride, dilation, dilation, groups=2)
    net = nn.Sequential(OutputStats(torch.rand(4) * 3, torch.rand(4) + 0.2), conv)
    x = torch.randn(1, 4, 3, 2)
    known = IndependentInputs(x).moments(net)[0]["1"]
    sample = torch.randn(60_000, 4, 3, 2) * net[0].std.reshape(4, 1, 1) + net[0].mean.reshape(4, 1, 1)
    real = RealInputs([lambda m: m[1](sample)]).moments(net)[0]["1"]
    torch.testing.assert_close(known.mean_GI, real.mean_GI, rtol=0.01, atol=0.01)
    torch.testing.assert_close(known.covariance_GII, real.covariance_GII, rtol=0.03, atol=0.02)
    endless = IndependentInputs().moments(net)[0]["1"]
    assert float((endless.mean_GI - real.mean_GI).abs().max()) > 0.3


def test_pooled_inputs_are_pruned_by_worth_not_by_place() -> None:
    torch.manual_seed(0)
    stats = OutputStats(torch.rand(8), torch.rand(8) + 0.5)
    net = nn.Sequential(nn.Conv2d(1, 8, 1), stats, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    inputs = IndependentInputs(torch.zeros(1, 1, 4, 4)).moments(net)[0]["4"]
    torch.testing.assert_close(inputs.std_GI[0], stats.std / 4)
    kept = prune(net[4].weight, net[4].bias, inputs, 0.5).weight != 0
    assert bool(kept.any(dim=1).all())
    dead = InputMoments(torch.ones(1, 8), torch.zeros(1, 8, 8), "without variance")
    kept = prune(net[4].weight, None, dead, 0.5).weight != 0
    size = net[4].weight.detach().abs()
    assert float(size[kept].min()) > float(size[~kept].max())


def test_propagated_samples_have_the_norms_statistics(residual: Residual) -> None:
    torch.manual_seed(1)
    found, _ = PropagatedInputs([lambda m: m(3 + 5 * torch.randn(64, 2, 8, 8))]).moments(residual)
    known, _ = IndependentInputs().moments(residual)
    torch.testing.assert_close(found["branch.0"].mean_GI, known["branch.0"].mean_GI, rtol=0.2, atol=0.1)
    off = found["branch.0"].covariance_GII[0]
    assert float((off - torch.diag(off.diagonal())).abs().max()) > 0.05  # and are correlated, as iid ones are not


class Tower(nn.Module):
    """Patches to tokens, two of our blocks, a norm: walked by type, whatever its attributes are called."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(6, 16)
        self.stack = nn.ModuleList(Block(16, 2, 64) for _ in range(2))
        self.last = nn.LayerNorm(16)
        self.unused = nn.Linear(16, 2)
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.entry(x)
        for block in self.stack:
            x = block(x)
        return self.last(x)


def test_transformer_layers_are_fed_by_their_norm() -> None:
    torch.manual_seed(0)
    net = Tower().eval()
    nn.init.uniform_(net.stack[0].norm2.weight, 0.2, 2)
    x = torch.randn(64, 10, 6)
    assert feeds(net, lambda m: m(x)) == [
        (f"stack.{i}.{norm}", f"stack.{i}.{part}")
        for i in range(2)
        for norm, part in (("norm1", "attn"), ("norm2", "mlp"))
    ]
    found, missed = LayerNormInputs(lambda m: m(x), clips=64).moments(net)
    assert missed == ["unused: not used by the call"]
    assert len(found) == 9
    torch.testing.assert_close(
        found["stack.0.mlp.fc1"].std_GI[0], net.stack[0].norm2.weight.detach(), rtol=0.1, atol=0.02
    )
    assert found["stack.1.mlp.fc2"].source == "Gaussian tokens through stack.1.norm2"
    assert "noise" in found["entry"].source
    errors = norm_moment_error(net, [lambda m: m(x)])
    assert set(errors) == {"last", *(f"stack.{i}.norm{j}" for i in range(2) for j in (1, 2))}
    assert 0 < errors["stack.0.norm1"]["log_std_rms"] < 1


def test_unfold_of_a_linear_and_of_groups() -> None:
    assert unfold(nn.Linear(4, 2), torch.zeros(3, 5, 4)).shape == (1, 15, 4)
    assert unfold(nn.Conv2d(4, 4, 3, groups=4), torch.zeros(2, 4, 5, 5)).shape == (4, 18, 9)
