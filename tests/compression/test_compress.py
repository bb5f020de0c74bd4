from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from avpretrain.compression.compress import Plan, compress
from avpretrain.compression.inputs import IndependentInputs, LayerNormInputs, PropagatedInputs, RealInputs
from avpretrain.compression.networks import build
from avpretrain.compression.packed import read_packed, write_packed
from avpretrain.compression.precondition import absorb_bias, equalise, fold_batchnorm, relu6_to_relu
from avpretrain.compression.quantiser import min_max_grid
from avpretrain.compression.walk import find_edges
from avpretrain.core.errors import UsageError, UserError
from avpretrain.nn.layers import Block


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mobilenet_v1", 4_231_976),
        ("efficientnet_b0", 5_288_548),
        ("mobilenet_v2", 3_504_872),
        ("resnet18", 11_689_512),
    ],
)
def test_networks_are_walked_and_fold(name: str, parameters: int) -> None:
    if name != "mobilenet_v1":
        pytest.importorskip("torchvision", reason="the network is torchvision's: pip install torchvision")
    torch.manual_seed(0)
    net = build(name).eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = net(x)
        assert fold_batchnorm(net) == []
        assert float((net(x) - before).norm() / before.norm()) < 1e-5
        found, missed = IndependentInputs(x).moments(net)
        assert missed == []
        assert set(found) == {n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        if name == "mobilenet_v2":
            assert relu6_to_relu(net) > 0
        before = net(x)
        missed = equalise(net)
        assert float((net(x) - before).norm() / before.norm()) < 1e-5
        left = " ".join([*missed, *absorb_bias(net)])
        for layer in found:  # each is in an edge, or what stands in the way is said
            assert layer in left or layer in {edge.first for edge in find_edges(net)[0]}
    expected = {
        "mobilenet_v1": ["AdaptiveAvgPool2d follows it"],
        "mobilenet_v2": ["add follows it", "adaptive_avg_pool2d follows it"],
        "resnet18": ["conv1: MaxPool2d follows it", "layer1.0.conv2: add follows it"],
        "efficientnet_b0": ["scaling does not pass through silu", "AdaptiveAvgPool2d follows it"],
    }
    assert all(line in left for line in expected[name])


def test_what_has_few_inputs_stays_dense_and_embeddings_keep_8_bits() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 16))
    x = torch.randint(40, (8, 30))
    found, missed = PropagatedInputs([lambda m: m(x)]).moments(net)
    full = net[0].weight.clone()
    done = compress(net, Plan(bits=3), found, missed)
    assert done.missed == [] and done.grids["0.weight"].bits == 8 and done.grids["1.weight"].bits == 3
    assert 0 < float((net[0].weight - full).detach().abs().max()) < 0.02
    conv = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1))
    found, missed = PropagatedInputs([lambda m: m(torch.randn(2, 16, 6, 6))]).moments(conv)
    done = compress(conv, Plan(sparsity=0.5), found, missed)
    assert done.missed == ["0: stays dense, with 9 inputs to an output"]
    assert set(done.layers) == {"1"} and int((conv[1].weight == 0).sum()) == 64
    done = compress(net, Plan(sparsity=0.5), {}, [])
    assert "0: an embedding; it stays dense" in done.missed


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block(16, 2, 64).eval()


def test_weights_lie_on_the_grid_and_packed_is_small_and_exact(block: Block, tmp_path: Path) -> None:
    x = torch.randn(4, 9, 16)
    found, missed = LayerNormInputs(lambda m: m(x)).moments(block)
    dense = {k: v.clone() for k, v in block.state_dict().items()}
    out = compress(block, Plan(bits=4), found, missed)
    assert out.missed == []
    for name, layer in out.layers.items():
        weight = block.get_submodule(name).weight
        assert max(len(row.unique()) for row in weight) <= 16
        assert layer["error"] < layer["error_naive"]
    small = write_packed(tmp_path / "a", block.state_dict(), out.grids)
    full = write_packed(tmp_path / "b", dense, {})
    assert small < 0.45 * full
    back = read_packed(tmp_path / "a")
    assert set(back) == set(dense)
    assert all(torch.equal(back[k], v) for k, v in block.state_dict().items())


def test_sparse_is_of_its_true_size(block: Block, tmp_path: Path) -> None:
    found, missed = LayerNormInputs(lambda m: m(torch.randn(4, 9, 16))).moments(block)
    out = compress(block, Plan(sparsity=0.75), found, missed)
    for layer in out.layers.values():
        assert layer["zeros"] == 0.75 * layer["weights"]
        assert layer["error"] < layer["error_naive"]
    write_packed(tmp_path / "a", block.state_dict(), {})
    back = read_packed(tmp_path / "a")
    assert all(torch.equal(back[k], v) for k, v in block.state_dict().items())
    weights = sum(layer["weights"] for layer in out.layers.values())
    assert (tmp_path / "a").stat().st_size < weights * (1 + 1 / 8) + 6000


def test_wrong_plans_and_files(tmp_path: Path) -> None:
    for wrong in ({}, {"bits": 8, "sparsity": 0.5}, {"bits": 1}, {"sparsity": 1.5}):
        with pytest.raises(UsageError, match="--"):
            Plan(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no network 'vgg'"):
        build("vgg")
    (tmp_path / "x").write_bytes(b"no weights")
    with pytest.raises(UserError, match="no packed weights"):
        read_packed(tmp_path / "x")


@torch.no_grad()
def test_without_a_bias_to_take_up_the_mean_the_output_is_nearer_still() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 6, bias=False)
    x = torch.randn(500, 12) * torch.rand(12) + 2
    before, naive = layer(x), min_max_grid(layer.weight, 3, per_channel=True).quantise(layer.weight)
    found, missed = RealInputs([lambda m: m(x)]).moments(nn.Sequential(layer))
    done = compress(nn.Sequential(layer), Plan(bits=3), found, missed, new_biases=False)
    assert layer.bias is None
    error = float((layer(x) - before).square().mean())
    assert error < 0.9 * float((x @ naive.T - before).square().mean())
    assert error == pytest.approx(done.layers["0"]["error"], rel=0.01)
