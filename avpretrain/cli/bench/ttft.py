"""`avpretrain bench ttft`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from avpretrain.cli.shared.arguments import bind
from avpretrain.cli.shared.places import require_file
from avpretrain.cli.shared.tables import show_table
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.measures.numbers import flops


def measure(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    /,
    lengths: tuple[int, ...] = (64, 256, 1024),
    batch_sizes: tuple[int, ...] = (1,),
    repeats: int = 10,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    threads: int = 0,
    out: Path | None = None,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measure the time to the first token after a prompt, next to counted FLOPs and memory.

    Of a model with a predicted cache: the base alone, the auxiliary model alone, and the base over the predicted cache.
    Reads a checkpoint, or a config, whose weights are random then: time does not depend on them. Writes nothing but
    --out. Takes seconds for tiny models, minutes for 1.1B on a CPU. Lengths beyond the model's context are left out.

    Args:
        model: A run folder, a checkpoint, a saved model, or a preset or YAML file of method openelm or kv_prediction.
        lengths: Tokens of the prompts.
        batch_sizes: Prompts at a time.
        repeats: Of each point, after two that do not count; medians are shown.
        device: auto = the GPU, if there is one.
        dtype: Precision of the weights.
        threads: Of the CPU; 0 = torch's choice.
        out: Write the numbers as JSON.
        json_: Print the numbers as JSON.
    """
    require_file(out)
    if repeats < 1:
        raise UsageError(f"--repeats must be at least 1, got {repeats}")
    import torch

    from avpretrain.bench.ttft import TTFTPoint, bench_ttft
    from avpretrain.core.provenance import environment
    from avpretrain.core.terminal import say
    from avpretrain.methods.load import load_config, load_language_model, make_method
    from avpretrain.methods.openelm.model import TextModel

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch sees no GPU; use --device cpu")
    if threads:
        torch.set_num_threads(threads)
    chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    trained = Path(model).exists() and Path(model).suffix not in (".yaml", ".yml")
    if trained:
        built: Any = load_language_model(model)[0]
    else:
        torch.manual_seed(0)
        built = make_method(load_config(model)).model()
        if not isinstance(built, TextModel):
            raise UsageError(f"{model} is a config of no language model; name one of openelm or kv_prediction")
    built = built.eval().to(chosen, getattr(torch, dtype))
    fitting = [length for length in lengths if length <= built.cfg.context]
    if not fitting:
        raise UsageError(f"no length fits the model's context of {built.cfg.context}; give --lengths")

    def tell(point: TTFTPoint) -> None:
        if not json_:
            how = "out of memory" if point.out_of_memory else f"{1e3 * point.seconds:.1f} ms"
            say(f"{point.arm}, {point.tokens} tokens, batch {point.batch_size}: {how}")

    points = bench_ttft(built, fitting, batch_sizes, repeats, say=tell)
    answer = {
        "bench": "ttft", "model": model, "trained": trained, "device": chosen, "dtype": dtype, "repeats": repeats,
        "threads": torch.get_num_threads(), "points": [point.to_json() for point in points], **environment(),
    }  # fmt: skip
    if out is not None:
        write_json(out, answer)
    if json_:
        print(json.dumps(answer, indent=2))
        return
    base = {(p.tokens, p.batch_size): p for p in points if p.arm == "base"}
    rows = []
    for p in points:
        whole = base[p.tokens, p.batch_size]
        faster = "" if p.out_of_memory or whole.out_of_memory else f"{whole.seconds / p.seconds:.2f}"
        working = "" if p.working_bytes is None else f"{p.working_bytes / 2**20:.1f}"
        time = "" if p.out_of_memory else f"{1e3 * p.seconds:.2f}"
        cells = [f"{p.tokens}", f"{p.batch_size}", time, faster, flops(p.flops), f"{whole.flops / p.flops:.2f}"]
        rows.append([p.arm, *cells, f"{p.weight_bytes / 2**20:.1f}", working])
    headings = ("arm", "tokens", "batch", "ms", "times as fast", "FLOPs", "times fewer", "weights, MiB", "working, MiB")
    show_table(headings, rows, f"Time to the first token on {chosen}, {dtype}", text=1)


def run(args: Sequence[str]) -> None:
    """Measures as the command line says."""
    bind(measure, args, "avpretrain bench ttft")()
