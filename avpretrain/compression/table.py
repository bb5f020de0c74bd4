"""The experiment: small networks trained on spoken digits, compressed in every way, measured.

Images are log-mel spectrograms of 64 bins and 64 frames, standardised. Activations stay float32 in the tables of bits
and sparsity; the int8 ONNX rows have activations of 8 bits, too.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from avpretrain.compression.digits import accuracy, digits, outputs, train
from avpretrain.compression.inputs import (
    IndependentInputs,
    InputModel,
    InputMoments,
    PropagatedInputs,
    RealInputs,
    layers_of,
    pink_noise,
)
from avpretrain.compression.networks import build_small
from avpretrain.compression.onnx_int8 import export_images, quantise_onnx, run_onnx
from avpretrain.compression.precondition import absorb_bias, equalise, fold_batchnorm, relu6_to_relu
from avpretrain.compression.quantiser import min_max_grid
from avpretrain.compression.solve import Score, Solution, Solver, is_prunable, prune, quantise
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import atomic_path, read_json, write_json

CALIBRATION = 512
"""Training clips that real calibration sees."""
NOISE = 256
"""Images of noise that are propagated."""
BITS = (8, 6, 5, 4, 3)
SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9)
GRIDS = ("per tensor", "per channel")
Method = str
INPUTS = ("independent", "white noise", "pink noise", "real")
QUANTISED = ("naive", "equalise", "dfq", *INPUTS)
PRUNED = ("magnitude", "equalise", "scaled", *INPUTS)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network after one treatment.

    Args:
        table: `full`, `bits`, `sparsity` or `onnx`.
        method: what was known of the layers' inputs, and what was done.
        sparsity: asked for, of the layers that are pruned.
        zeros: share of all layers' weights that is zero.
        accuracy: on the test clips.
        output_error: mean square change of the outputs over their variance, on the test clips.
        seconds: that the treatment took, without what is shared by rows (moments, preconditioning).
        size: bytes of the file, of `onnx`.
        milliseconds: for one clip in one thread, of `onnx`.
    """

    seed: int
    table: str
    method: str
    accuracy: float
    output_error: float
    seconds: float = 0.0
    bits: int | None = None
    grid: str | None = None
    sparsity: float | None = None
    zeros: float | None = None
    size: int | None = None
    milliseconds: float | None = None

    @property
    def cell(self) -> tuple[Any, ...]:
        """What tells it from other rows."""
        return self.seed, self.table, self.method, self.bits, self.grid, self.sparsity

    def to_json(self) -> dict[str, Any]:
        """Without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Row:
        """The inverse of `to_json`."""
        names = {f.name for f in fields(cls)}
        return cls(**{name: item for name, item in value.items() if name in names})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the experiment. Args: epochs: of training; steps: of the solver by gradients."""

    network: str = "mobilenet_v1"
    width: float = 0.25
    seeds: int = 1
    epochs: int = 40
    steps: int = 60

    def to_json(self) -> dict[str, Any]:
        """What a row depends on: seeds may be added later."""
        return {name: value for name, value in asdict(self).items() if name != "seeds"}


class Bench:
    """One trained network, those preconditioned from it, and what their layers are fed, each made when asked for.

    Args:
        net: in evaluation mode, with its norms.
    """

    def __init__(self, net: nn.Module, calibration_N1HW: Tensor, seed: int) -> None:
        self.net, self.calibration_N1HW, self.seed = net, calibration_N1HW, seed
        self._inputs: dict[str, dict[str, InputMoments]] = {}
        self.spent: dict[str, dict[str, float]] = {}

    @cached_property
    def folded(self) -> nn.Module:
        """Without norms."""
        folded = copy.deepcopy(self.net)
        if missed := fold_batchnorm(folded):
            raise UserError(f"a norm can't be folded: {missed[0]}")
        return folded

    @cached_property
    def equal(self) -> nn.Module:
        """Folded, ReLU6 replaced by ReLU, and equalised."""
        equal = copy.deepcopy(self.folded)
        relu6_to_relu(equal)
        equalise(equal)
        return equal

    @cached_property
    def ready(self) -> nn.Module:
        """Equalised, biases absorbed."""
        ready = copy.deepcopy(self.equal)
        absorb_bias(ready)
        return ready

    def inputs(self, kind: str) -> dict[str, InputMoments]:
        """What the layers of `ready` are fed, by one of `INPUTS`."""
        if kind not in self._inputs:
            generator = torch.Generator().manual_seed(self.seed)
            shape = (NOISE, *self.calibration_N1HW.shape[1:])
            white, pink = torch.randn(shape, generator=generator), pink_noise(shape, generator)
            sources: dict[str, Callable[[], InputModel]] = {
                "independent": lambda: IndependentInputs(white[:1]),
                "white noise": lambda: PropagatedInputs([lambda m: m(white)]),
                "pink noise": lambda: PropagatedInputs([lambda m: m(pink)]),
                "real": lambda: RealInputs([lambda m: m(self.calibration_N1HW)]),
            }
            source = sources[kind]()
            start = time.perf_counter()
            with FlopCounterMode(display=False) as counted:
                self._inputs[kind], missed = source.moments(self.ready)
            self.spent[kind] = {"seconds": time.perf_counter() - start, "flops": counted.get_total_flops()}
            if missed:
                raise UserError(f"a layer's input is not known: {missed[0]}")
        return self._inputs[kind]

    def quantised(self, method: str, bits: int, per_channel: bool, steps: int) -> nn.Module:
        """A copy by one of `QUANTISED`."""
        source = {"naive": self.folded, "equalise": self.equal}.get(method, self.ready)
        found = None if method in ("naive", "equalise") else self.inputs("independent" if method == "dfq" else method)
        solver: Solver = "naive" if found is None else "closed" if method in ("dfq", "independent") else "ste"

        def change(name: str, layer: nn.Linear | nn.Conv2d) -> Solution:
            grid = min_max_grid(layer.weight, bits, per_channel) if method == "dfq" else None
            known = None if found is None else found[name]
            return quantise(layer.weight, layer.bias, known, bits, per_channel, solver, steps, grid)

        return _each(source, change)

    def pruned(self, method: str, sparsity: float) -> nn.Module:
        """A copy by one of `PRUNED`; `scaled` is |w| times the deviation and a corrected bias, not re-optimised."""
        source = {"magnitude": self.folded, "equalise": self.equal}.get(method, self.ready)
        known = method not in ("magnitude", "equalise")
        found = self.inputs("independent" if method == "scaled" else method) if known else {}
        score: Score = "scaled" if method == "scaled" else "best"

        def change(name: str, layer: nn.Linear | nn.Conv2d) -> Solution:
            share = sparsity if is_prunable(layer) else 0.0
            return prune(layer.weight, layer.bias, found.get(name), share, score, reoptimise=method != "scaled")

        return _each(source, change)


def _each(net: nn.Module, change: Callable[[str, nn.Linear | nn.Conv2d], Solution]) -> nn.Module:
    """A copy whose layers have the weights and biases that `change` gives."""
    small = copy.deepcopy(net)
    for name, layer in layers_of(small).items():
        solution = change(name, layer)
        layer.weight = nn.Parameter(solution.weight)
        layer.bias = nn.Parameter(solution.bias)
    return small


def measure(
    bench: Bench, test_N1HW: Tensor, class_N: Tensor, steps: int = 60, done: frozenset[tuple[Any, ...]] = frozenset()
) -> Iterator[Row]:
    """Rows of the tables, one after another.

    Args:
        steps: of the solver by gradients.
        done: cells that are not measured again.
    """
    full_NC = outputs(bench.net, test_N1HW)
    variance = (full_NC - full_NC.mean(dim=0)).square().mean()

    def row(make: Callable[[], nn.Module], **what: Any) -> Iterator[Row]:
        wanted = Row(seed=bench.seed, accuracy=0, output_error=0, **what)
        if wanted.cell in done:
            return
        start = time.perf_counter()
        made = make()
        what["seconds"] = time.perf_counter() - start
        if wanted.sparsity is not None:
            weights = [layer.weight for layer in layers_of(made).values()]
            zero = sum(int((w == 0).sum()) for w in weights)
            what["zeros"] = zero / sum(w.numel() for w in weights)
        out_NC = outputs(made, test_N1HW)
        error = float((out_NC - full_NC).square().mean() / variance)
        yield Row(seed=bench.seed, accuracy=accuracy(out_NC, class_N), output_error=error, **what)

    yield from row(lambda: bench.net, table="full", method="full")
    yield from row(lambda: bench.equal, table="full", method="equalise")
    yield from row(lambda: bench.ready, table="full", method="absorb")
    for bits in BITS:
        for grid in GRIDS:
            for method in QUANTISED:
                if method in INPUTS or method == "dfq":
                    bench.inputs("independent" if method == "dfq" else method)
                yield from row(
                    partial(bench.quantised, method, bits, grid == "per channel", steps),
                    table="bits", method=method, bits=bits, grid=grid,
                )  # fmt: skip
    for sparsity in SPARSITIES:
        for method in PRUNED:
            yield from row(partial(bench.pruned, method, sparsity), table="sparsity", method=method, sparsity=sparsity)


def measure_int8(
    bench: Bench, test_N1HW: Tensor, class_N: Tensor, done: frozenset[tuple[Any, ...]] = frozenset()
) -> Iterator[Row]:
    """Rows of onnxruntime's files: float32, and int8 by ranges of activations from noise and from real clips.

    None where the extra `onnx` is not installed.
    """
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        return
    full_NC = outputs(bench.net, test_N1HW)
    variance = (full_NC - full_NC.mean(dim=0)).square().mean()
    generator = torch.Generator().manual_seed(bench.seed)
    noise_N1HW = pink_noise((NOISE, *test_N1HW.shape[1:]), generator)
    with tempfile.TemporaryDirectory() as folder:
        full, small = Path(folder) / "full.onnx", Path(folder) / "small.onnx"
        for method in ("float32", "pink noise", "real"):
            wanted = Row(seed=bench.seed, table="onnx", method=method, accuracy=0, output_error=0)
            if wanted.cell in done:
                continue
            if not full.exists():
                export_images(bench.folded, test_N1HW[:2], full)
            start = time.perf_counter()
            if method != "float32":
                batches = (noise_N1HW if method == "pink noise" else bench.calibration_N1HW).split(32)
                quantise_onnx(full, small, [batch.numpy() for batch in batches])
            seconds = time.perf_counter() - start
            file = full if method == "float32" else small
            out_NC, milliseconds = run_onnx(file, test_N1HW.numpy())
            error = float((torch.from_numpy(out_NC) - full_NC).square().mean() / variance)
            yield replace(
                wanted, accuracy=accuracy(torch.from_numpy(out_NC), class_N), output_error=error, seconds=seconds,
                size=file.stat().st_size, milliseconds=milliseconds,
            )  # fmt: skip


def run(folder: Path, settings: Settings, out: Path, extra: Mapping[str, Any]) -> list[Row]:
    """Trains and measures one network a seed; what `out` and the folder of weights beside it hold is not done again.

    Args:
        extra: goes into the JSON file.

    Raises:
        UserError: there are no recordings.
        UsageError: `out` is a table of other settings.
    """
    rows, spent = _kept(out, settings)
    image_N1HW, class_N, test_N = digits(folder)
    parameters = 0

    def save() -> None:
        write_json(out, {
            "settings": settings.to_json(), "parameters": parameters, "data": "FSDD, 64 x 64 log-mel",
            "train_clips": int((~test_N).sum()), "test_clips": int(test_N.sum()), "calibration_clips": CALIBRATION,
            "noise_images": NOISE, "activations": "float32", "moments": spent, **extra,
            "rows": [row.to_json() for row in rows],
        })  # fmt: skip

    for seed in range(settings.seeds):
        torch.manual_seed(seed)
        net = build_small(settings.network, classes=10, width=settings.width)
        parameters = sum(p.numel() for p in net.parameters())
        weights = out.with_name(f"{out.stem}_weights") / f"seed{seed}.safetensors"
        if weights.exists():
            net.load_state_dict(load_file(weights))
            net.eval()
        else:
            train(net, image_N1HW[~test_N], class_N[~test_N], settings.epochs, seed)
            weights.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(weights) as temporary:
                save_file(net.state_dict(), temporary)
        ids = torch.randperm(int((~test_N).sum()), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
        bench = Bench(net, image_N1HW[~test_N][ids], seed)
        done = frozenset(row.cell for row in rows)
        cells = measure(bench, image_N1HW[test_N], class_N[test_N], settings.steps, done)
        for row in itertools.chain(cells, measure_int8(bench, image_N1HW[test_N], class_N[test_N], done)):
            rows.append(row)
            spent[f"seed {seed}"] = {**spent.get(f"seed {seed}", {}), **bench.spent}
            save()
    save()
    return rows


def _kept(out: Path, settings: Settings) -> tuple[list[Row], dict[str, Any]]:
    """Rows that an earlier run of the same settings wrote, and what its moments cost."""
    if not out.exists():
        return [], {}
    old = read_json(out, "table")
    if not isinstance(old, dict) or old.get("settings") != settings.to_json():
        raise UsageError(f"--out {out} is no table of these settings; name another file, or remove it")
    return [Row.from_json(row) for row in old["rows"]], old["moments"]


# --- as text ---------------------------------------------------------------------------------------------------------


def markdown(rows: list[Row]) -> str:
    """The tables: means over seeds of the accuracy in %, and of the output's error in %."""
    seeds = len({row.seed for row in rows})
    parts = []
    for value, name in (("accuracy", "accuracy in %"), ("output_error", "output error in %")):
        for grid in GRIDS:
            found = {(r.method, r.bits): [] for r in rows if r.grid == grid}  # type: dict[Any, list[float]]
            for r in rows:
                if r.grid == grid:
                    found[r.method, r.bits].append(100 * getattr(r, value))
            parts.append(_table(f"{name}, {grid}", [f"{b} bits" for b in BITS], QUANTISED, BITS, found))
        found = {}
        for r in rows:
            if r.sparsity is not None:
                found.setdefault((r.method, r.sparsity), []).append(100 * getattr(r, value))
        head = [f"{100 * s:.0f}% zeros" for s in SPARSITIES]
        parts.append(_table(f"{name}, pruned", head, PRUNED, SPARSITIES, found))
    onnx = [r for r in rows if r.table == "onnx"]
    if onnx:
        lines = ["| onnxruntime | accuracy in % | output error in % | kB | ms a clip |", "|---|---|---|---|---|"]
        for method in dict.fromkeys(r.method for r in onnx):
            mine = [r for r in onnx if r.method == method]
            values = ([100 * r.accuracy for r in mine], [100 * r.output_error for r in mine],
                      [(r.size or 0) / 1000 for r in mine], [r.milliseconds or 0 for r in mine])  # fmt: skip
            lines.append(f"| {method} | {' | '.join(_spread(v) for v in values)} |")
        parts.append("\n".join(lines))
    full = [100 * r.accuracy for r in rows if r.table == "full" and r.method == "full"]
    means = f"{seeds} seed(s); full network {_spread(full)}%"
    return "\n\n".join([means, *parts])


def _table(title: str, head: list[str], methods: tuple[str, ...], columns: Any, found: dict[Any, list[float]]) -> str:
    lines = [f"| {title} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for method in methods:
        values = [found.get((method, column), []) for column in columns]
        if any(values):
            lines.append(f"| {method} | {' | '.join(_spread(v) for v in values)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    """Mean, and half of the range over seeds."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    text = f"{mean:.1f}" if mean >= 0.95 else f"{mean:.2g}"
    return text if len(values) == 1 else f"{text} ± {(max(values) - min(values)) / 2:.1f}"
