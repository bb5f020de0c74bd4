"""What each layer is fed, as first and second moments: from the network's own statistics, from samples, or from data.

G groups of a convolution, I inputs of one output within a group (channels times taps), N samples, C channels, D width,
B clips, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from avpretrain.compression import moments
from avpretrain.compression.norms import Norm
from avpretrain.compression.walk import (
    ADDITIONS,
    APPLY,
    PRODUCTS,
    Layer,
    OutputStats,
    activation_of,
    describe,
    removed,
    trace,
)  # fmt: skip
from avpretrain.core.errors import UserError

Run = Callable[[nn.Module], Any]
"""Calls the network, or the parts of it that are to be compressed, on some input."""
UNFOLDED_VALUES = 2**24
"""Values of a convolution's unfolded input that are held at a time, about."""


@dataclass(frozen=True)
class InputMoments:
    """Distribution of a layer's unfolded input.

    Args:
        mean_GI: expectation.
        covariance_GII: covariance; diagonal where inputs are taken as independent.
        source: where it is from, in a few words.
    """

    mean_GI: Tensor
    covariance_GII: Tensor
    source: str

    @property
    def std_GI(self) -> Tensor:
        """Standard deviation of each input."""
        return self.covariance_GII.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()

    def about_zero(self) -> InputMoments:
        """Second moments in place of the covariance, and no mean: for a layer without a bias that could take it up."""
        outer_GII = self.mean_GI[:, :, None] * self.mean_GI[:, None, :]
        return InputMoments(torch.zeros_like(self.mean_GI), self.covariance_GII + outer_GII, self.source)


class InputModel(Protocol):
    """A way to know what layers are fed."""

    def moments(self, model: nn.Module) -> tuple[dict[str, InputMoments], list[str]]:
        """Moments by the layer's name, and what could not be handled, a line each."""
        ...


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Every linear layer and convolution by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Layer)}


# --- from samples ----------------------------------------------------------------------------------------------------


def unfold(layer: Layer, x: Tensor) -> Tensor:
    """[G, N, I], the rows that the layer multiplies with its weights."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, layer.in_features)
    if not isinstance(layer.padding, str):
        kernel = tuple(layer.kernel_size)
        columns = F.unfold(
            x, kernel, tuple(layer.dilation), tuple(layer.padding), tuple(layer.stride)
        )  # [B, C taps, L]
        return columns.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    raise UserError(f"padding {layer.padding!r} of a convolution is not handled; give it as numbers")


@dataclass
class _Sums:
    """Moments in the making."""

    rows: int = 0
    first: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, rows_GNI: Tensor) -> None:
        rows_GNI = rows_GNI.double()
        self.rows += rows_GNI.shape[1]
        self.first = self.first + rows_GNI.sum(dim=1)
        self.second = self.second + rows_GNI.transpose(1, 2) @ rows_GNI

    def moments(self, source: str) -> InputMoments:
        mean = self.first / self.rows
        covariance = self.second / self.rows - mean[:, :, None] * mean[:, None, :]
        return InputMoments(mean.float(), covariance.float(), source)


class _Collector(ExitStack):
    """Hooks on layers that gather what they are fed while the context is open."""

    def __init__(self, layers: dict[str, Layer]) -> None:
        super().__init__()
        self.sums = {name: _Sums() for name in layers}
        for name, layer in layers.items():
            self.enter_context(removed(layer.register_forward_pre_hook(self._hook(name))))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(layer, Layer)
            x = args[0].detach() if args[0].ndim > 1 else args[0].detach()[None]
            taps = layer.weight[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
            clips = max(1, UNFOLDED_VALUES * len(x) // max(1, x.numel() * taps))
            for part in x.split(clips):  # every row counts: rows picked at a stride would be of one column of the image
                self.sums[name].add(unfold(layer, part))

        return hook

    def found(self, source: str) -> dict[str, InputMoments]:
        return {name: sums.moments(source) for name, sums in self.sums.items() if sums.rows > 1}


class RealInputs:
    """Real calibration: the upper reference. Args: runs: each calls the network on a batch of real data."""

    def __init__(self, runs: Iterable[Run], source: str = "real data") -> None:
        self.runs, self.source = list(runs), source

    @torch.no_grad()
    def moments(self, model: nn.Module) -> tuple[dict[str, InputMoments], list[str]]:
        layers = layers_of(model)
        with _Collector(layers) as collector:
            for run in self.runs:
                run(model)
        found = collector.found(self.source)
        return found, [f"{name}: not used by the call" for name in layers if name not in found]


def pink_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normal noise [..., H, W] whose amplitude falls as 1/f over its last two axes, as spectrograms' and images' does.

    Mean 0 and variance 1 over all of it.
    """
    height, width = shape[-2:]
    wave = torch.fft.rfft2(torch.randn(*shape, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    noise = torch.fft.irfft2(wave / frequency, s=(height, width))
    return (noise - noise.mean()) / noise.std()


class PropagatedInputs:
    """Gaussian samples sent through the real network, held to its folded norms' statistics on the way.

    At each `OutputStats` the samples of every channel are shifted and scaled to the mean and deviation it keeps, so
    correlation comes from the blocks before and the marginal moments from training.

    Args:
        runs: each calls the network on noise.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = list(runs)

    @torch.no_grad()
    def moments(self, model: nn.Module) -> tuple[dict[str, InputMoments], list[str]]:
        with ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, OutputStats):
                    stack.enter_context(removed(module.register_forward_hook(_match_statistics)))
            return RealInputs(self.runs, "propagated samples").moments(model)


def _match_statistics(stats: nn.Module, _: tuple[Any, ...], out: Tensor) -> Tensor:
    assert isinstance(stats, OutputStats)
    axes = [d for d in range(out.ndim) if d != 1]
    shape = (1, -1, *[1] * (out.ndim - 2))
    std, mean = torch.std_mean(out, dim=axes, keepdim=True)
    return (out - mean) / std.clamp(min=1e-6) * stats.std.reshape(shape) + stats.mean.reshape(shape)


# --- from LayerNorm --------------------------------------------------------------------------------------------------


class LayerNormInputs:
    """For transformers: Gaussian tokens through each norm with its affine, then the block's own attention or MLP.

    What a norm feeds is found by watching one call: a layer that takes its output, or a module that does, and within
    which layers then see what the module makes of it. Layers that no norm feeds are given what the call's noise makes.

    Args:
        run: calls the network on noise of its input's shape.
        clips: B, sequences drawn for each norm.
        tokens: L, tokens in each.
    """

    def __init__(self, run: Run, clips: int = 8, tokens: int = 64, seed: int = 0) -> None:
        self.run, self.clips, self.tokens, self.seed = run, clips, tokens, seed

    @torch.no_grad()
    def moments(self, model: nn.Module) -> tuple[dict[str, InputMoments], list[str]]:
        layers = layers_of(model)
        pairs = feeds(model, self.run)
        noise, missed = RealInputs([self.run], "the call's noise, propagated").moments(model)
        generator, found = torch.Generator().manual_seed(self.seed), dict(noise)
        for norm, consumer in pairs:
            inside = {n: m for n, m in layers.items() if n == consumer or n.startswith(f"{consumer}.")}
            tokens_BLD = _normed_tokens(model.get_submodule(norm), self.clips, self.tokens, generator)
            with _Collector(inside) as collector:
                model.get_submodule(consumer)(tokens_BLD)
            found |= collector.found(f"Gaussian tokens through {norm}")
        return found, missed


def _normed_tokens(norm: nn.Module, clips: int, tokens: int, generator: torch.Generator) -> Tensor:
    assert isinstance(norm, Norm) and isinstance(norm.weight, Tensor)
    return norm(torch.randn(clips, tokens, len(norm.weight), generator=generator))


def feeds(model: nn.Module, run: Run) -> list[tuple[str, str]]:
    """Pairs of a norm and the outermost module that is called with its output alone, in order of one call."""
    names = {module: name for name, module in model.named_modules()}
    outputs: dict[int, tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [a for a in (*args, *kwargs.values()) if a is not None]
        if len(given) != 1 or id(given[0]) not in outputs or isinstance(module, Norm):
            return  # a call with anything else, such as tables of positions, can't be made again
        norm = outputs[id(given[0])][0]
        if not any(n == norm and names[module].startswith(f"{c}.") for n, c in pairs):
            pairs.append((norm, names[module]))

    def after(module: nn.Module, _: tuple[Any, ...], out: Tensor) -> None:
        outputs[id(out)] = names[module], out  # kept, so that no other tensor takes its id

    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            stack.enter_context(removed(module.register_forward_pre_hook(before, with_kwargs=True)))
            if isinstance(module, Norm) and module.weight is not None and module.weight.ndim == 1:
                stack.enter_context(removed(module.register_forward_hook(after)))
        run(model)
    return list(dict.fromkeys(pairs))


def norm_moment_error(model: nn.Module, runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """How far a LayerNorm's or RMSNorm's outputs on real data are from N(bias, weight^2), by norm.

    Returns: root mean square over channels of the error of the mean in units of |weight|, of the logarithm of the
        deviation's ratio, and the largest ratio of a channel.
    """
    sums: dict[str, _Sums] = {}
    norms = {n: m for n, m in model.named_modules() if isinstance(m, Norm) and m.weight is not None}
    with ExitStack() as stack, torch.no_grad():
        for name, norm in norms.items():
            sums[name] = _Sums()

            def hook(_: nn.Module, __: tuple[Any, ...], out: Tensor, kept: _Sums = sums[name]) -> None:
                kept.add(out.reshape(1, -1, out.shape[-1]))

            stack.enter_context(removed(norm.register_forward_hook(hook)))
        for run in runs:
            run(model)
    errors = {}
    for name, norm in norms.items():
        if sums[name].rows > 1:
            real = sums[name].moments("")
            scale_D = norm.weight.detach().abs().clamp(min=1e-6)
            bias = getattr(norm, "bias", None)
            shift_D = torch.zeros_like(scale_D) if bias is None else bias.detach()
            mean_D = (real.mean_GI[0] - shift_D) / scale_D
            ratio_D = (real.std_GI[0] / scale_D).clamp(min=1e-6)
            errors[name] = {
                "mean_rms": float(mean_D.square().mean().sqrt()),
                "log_std_rms": float(ratio_D.log().square().mean().sqrt()),
                "largest_std_ratio": float(ratio_D.max()),
            }
    return errors


# --- from BatchNorm, in closed form ----------------------------------------------------------------------------------


class IndependentInputs:
    """For networks with folded norms: closed forms along the graph, every channel and place taken as independent.

    The input is N(0, 1). An `OutputStats` sets the distribution, activations transform it, residual sums add means and
    variances, products multiply independents, average pooling divides the variance by its values.

    Args:
        example: an input of the network by whose size maps are measured, so that zero padding counts: in a map of 2 x 2
            a corner of a 3 x 3 kernel sees padding three times in four. None = as if maps were endless, and pooling
            over all of space leaves the variance as it is.
    """

    def __init__(self, example: Tensor | None = None) -> None:
        self.example = example

    @torch.no_grad()
    def moments(self, model: nn.Module) -> tuple[dict[str, InputMoments], list[str]]:
        modules = dict(model.named_modules())
        known: dict[fx.Node, tuple[Tensor, Tensor] | None] = {}
        found: dict[str, InputMoments] = {}
        missed: list[str] = []
        graph = trace(model)
        if self.example is not None:
            ShapeProp(fx.GraphModule(model, graph)).propagate(self.example)
        for node in graph.nodes:
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            inputs = [known.get(a) for a in node.args if isinstance(a, fx.Node)]
            size = _map_size(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
            if isinstance(module, Layer):
                mean_var = _fit(inputs[0] if inputs else None, module)
                if mean_var is None:
                    missed.append(f"{node.target}: the distribution of its input is not known")
                    known[node] = None
                    continue
                found[str(node.target)] = _independent(module, *mean_var, size)
                known[node] = _after_layer(module, found[str(node.target)])
            else:
                known[node] = _transformed(node, module, inputs, size)
                if known[node] is None and node.op not in ("output", "get_attr", "placeholder") and all(inputs):
                    missed.append(f"{node.name}: {describe(node, module)} is not handled")
        return found, missed


def _map_size(node: fx.Node) -> tuple[int, int] | None:
    """Height and width of a node's output; none = not measured, or it has none."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape[2:]) if meta is not None and len(getattr(meta, "shape", ())) == 4 else None


def _fit(inputs: tuple[Tensor, Tensor] | None, layer: Layer) -> tuple[Tensor, Tensor] | None:
    if inputs is None:
        return None
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    mean, var = inputs
    if len(mean) == 1:
        return mean.expand(width), var.expand(width)
    if len(mean) == width:
        return mean, var
    repeats, rest = divmod(width, len(mean))  # space was flattened behind channels
    return None if rest else (mean.repeat_interleave(repeats), var.repeat_interleave(repeats))


def _independent(layer: Layer, mean_C: Tensor, var_C: Tensor, size: tuple[int, int] | None) -> InputMoments:
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    seen_TT = torch.ones(1, 1) if isinstance(layer, nn.Linear) else _taps_seen(layer, size)
    share_T, taps = seen_TT.diagonal(), len(seen_TT)
    mean_GC, var_GC = mean_C.reshape(groups, -1), var_C.reshape(groups, -1)
    square_GCC = mean_GC[:, :, None] * mean_GC[:, None]
    # the place of an output decides which taps see padding, so that they move together by as much as their means
    padding_TT = seen_TT - share_T[:, None] * share_T
    covariance_GII = torch.einsum("gcd,tu->gctdu", square_GCC, padding_TT).flatten(3, 4).flatten(1, 2)
    var_GI = torch.einsum("gc,t->gct", var_GC, share_T).flatten(1)
    mean_GI = torch.einsum("gc,t->gct", mean_GC, share_T).flatten(1)
    assert mean_GI.shape[1] == mean_GC.shape[1] * taps
    return InputMoments(mean_GI, covariance_GII + torch.diag_embed(var_GI), "norm statistics, independent")


def _taps_seen(layer: nn.Conv2d, size: tuple[int, int] | None) -> Tensor:
    """[T, T], shares of a convolution's places at which two taps of its kernel both see values, not padding."""
    if size is None or isinstance(layer.padding, str):
        taps = layer.weight[0, 0].numel()
        return torch.ones(taps, taps)
    seen = []
    for axis in (0, 1):
        extent, kernel, stride = size[axis], layer.kernel_size[axis], layer.stride[axis]
        dilation, padding = layer.dilation[axis], int(layer.padding[axis])
        places = (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        at_KP = torch.arange(kernel)[:, None] * dilation + torch.arange(places) * stride - padding
        inside_KP = ((at_KP >= 0) & (at_KP < extent)).float()
        seen.append(inside_KP @ inside_KP.T / places)
    return torch.kron(seen[0], seen[1])


def _after_layer(layer: Layer, inputs: InputMoments) -> tuple[Tensor, Tensor]:
    groups = len(inputs.mean_GI)
    weight_GOI = layer.weight.detach().flatten(1).unflatten(0, (groups, -1))
    mean_O = torch.einsum("goi,gi->go", weight_GOI, inputs.mean_GI).flatten()
    var_O = torch.einsum("goi,gij,goj->go", weight_GOI, inputs.covariance_GII, weight_GOI).flatten().clamp(min=0)
    return (mean_O if layer.bias is None else mean_O + layer.bias.detach()), var_O


def _transformed(
    node: fx.Node,
    module: nn.Module | None,
    inputs: list[tuple[Tensor, Tensor] | None],
    size: tuple[int, int] | None,
) -> tuple[Tensor, Tensor] | None:
    """Mean and variance by channel of a node's output; [1] where all channels are alike; none = not known."""
    if node.op == "placeholder":
        return torch.zeros(1), torch.ones(1)
    if isinstance(module, OutputStats):
        return module.mean, module.std.square()
    if not inputs or inputs[0] is None:
        return None
    mean, var = inputs[0]
    target = node.target
    if kind := activation_of(node, module):
        if kind in ("relu", "relu6"):
            return getattr(moments, kind)(mean, var.sqrt())
        return moments.of_function(APPLY[kind], mean, var.sqrt())
    if isinstance(module, nn.Dropout | nn.Identity | nn.Flatten | nn.MaxPool2d) or target in (torch.flatten, "flatten"):
        return mean, var  # max pooling raises the mean; it is left as it is
    if isinstance(module, nn.AdaptiveAvgPool2d) or target is F.adaptive_avg_pool2d or target == "mean":
        return mean, var / (size[0] * size[1] if size else 1)  # over all of space
    if isinstance(module, nn.AvgPool2d):
        kernel = module.kernel_size
        return mean, var / (kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1])
    if len(inputs) == 2 and inputs[1] is not None and target in ADDITIONS:
        return mean + inputs[1][0], var + inputs[1][1]
    if len(inputs) == 2 and inputs[1] is not None and target in PRODUCTS:
        mean2, var2 = inputs[1]
        return mean * mean2, var * var2 + var * mean2.square() + var2 * mean.square()
    if type(module).__name__ == "StochasticDepth" or getattr(target, "__name__", "") in ("stochastic_depth", "dropout"):
        return mean, var
    return None
