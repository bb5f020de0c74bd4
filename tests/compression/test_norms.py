from __future__ import annotations

import torch
from torch import nn

from avpretrain.compression.inputs import LayerNormInputs
from avpretrain.compression.norms import equalise_norms, fed_by_norms
from avpretrain.compression.quantiser import min_max_grid
from avpretrain.nn.causal_block import CausalBlock
from avpretrain.nn.layers import Block, init_weights
from avpretrain.nn.rms_norm import RMSNorm
from avpretrain.nn.rotary import rotary_tables


def uneven(net: nn.Module) -> nn.Module:
    """Norms whose channels differ by a hundred times, as outlier channels of trained ones do."""
    for module in net.modules():
        if isinstance(module, nn.LayerNorm | RMSNorm):
            module.weight.data = torch.exp(torch.linspace(-3, 2, len(module.weight)))[
                torch.randperm(len(module.weight))
            ]
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.bias)
    return net.eval()


@torch.no_grad()
def test_encoder_computes_the_same_with_ranges_equalised() -> None:
    torch.manual_seed(0)
    net = uneven(nn.Sequential(Block(16, 2, 32), Block(16, 2, 32)).apply(init_weights))
    x = torch.randn(5, 7, 16)
    before = net(x)
    assert fed_by_norms(net, lambda m: m(x)) == {
        "0.norm1": ["0.attn.qkv"], "0.norm2": ["0.mlp.fc1"], "1.norm1": ["1.attn.qkv"], "1.norm2": ["1.mlp.fc1"],
    }  # fmt: skip

    def spread() -> float:
        logs = net[0].norm1.weight.abs().log() - net[0].attn.qkv.weight.abs().amax(dim=0).log()
        return float(logs.std())

    assert spread() > 1.3
    assert equalise_norms(net, lambda m: m(x)) == []
    assert float((net(x) - before).norm() / before.norm()) < 1e-5
    assert spread() < 0.7  # not 0: the bias counts


@torch.no_grad()
def test_language_model_computes_the_same_and_rounds_better() -> None:
    torch.manual_seed(0)
    net = uneven(CausalBlock(16, 4, 2, 4, 32))
    x, tables = torch.randn(5, 7, 16), rotary_tables(torch.arange(7), 4)

    def run(m: nn.Module) -> torch.Tensor:
        return m(x, tables)

    def error() -> float:
        small = CausalBlock(16, 4, 2, 4, 32)
        small.load_state_dict(net.state_dict())
        for name, layer in small.named_modules():
            if isinstance(layer, nn.Linear) and "qkv" in name:
                layer.weight.copy_(min_max_grid(layer.weight, 4, per_channel=True).quantise(layer.weight))
        return float((run(small) - run(net)).norm() / run(net).norm())

    before, error_before = run(net), error()
    assert equalise_norms(net, run) == []
    assert float((run(net) - before).norm() / before.norm()) < 1e-5
    assert error() < 0.7 * error_before
    found, missed = LayerNormInputs(run).moments(net)
    assert missed == []
    assert found["attn.qkv"].source == "Gaussian tokens through norm1"


class TwoWays(nn.Module):
    """A norm whose output also goes past the layer that it feeds, and one that is not shared."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.alone = nn.LayerNorm(16), nn.LayerNorm(16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(x)
        x = x + self.first(x)
        return self.second(self.alone(x))


@torch.no_grad()
def test_a_norm_that_feeds_more_is_put_back_exactly_and_named() -> None:
    torch.manual_seed(0)
    net = uneven(TwoWays())
    old = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(5, 16)
    before = net(x)
    missed = equalise_norms(net, lambda m: m(x))
    assert missed == ["shared: its output goes elsewhere than into first; not equalised"]
    assert float((net(x) - before).norm() / before.norm()) < 1e-5
    new = net.state_dict()
    assert all(torch.equal(old[f"{n}.weight"], new[f"{n}.weight"]) for n in ("shared", "first"))
    assert not torch.equal(old["alone.weight"], new["alone.weight"])
