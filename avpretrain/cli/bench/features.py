"""`avpretrain bench features`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from avpretrain.cli.shared.arguments import bind
from avpretrain.cli.shared.places import require_file
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import say


def measure(
    batch_size: int = 128,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 0,
    out: Path | None = None,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measure how fast waveforms of 10 s become log-mel spectrograms, compared with torchaudio on the same device.

    Reads nothing; writes nothing but --out. Takes seconds on a GPU, a minute on a CPU.

    Args:
        batch_size: clips.
        device: auto = the GPU, if there is one.
        threads: of the CPU; 0 = torch's choice.
        out: write the numbers as JSON.
        json_: print the numbers as JSON.
    """
    require_file(out)
    import torch

    from avpretrain.bench.features import bench_features
    from avpretrain.config.model import InputConfig
    from avpretrain.core.provenance import environment

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch sees no GPU; use --device cpu")
    if threads:
        torch.set_num_threads(threads)
    chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    answer = {**bench_features(InputConfig(), batch_size, torch.device(chosen)), **environment()}
    if out is not None:
        write_json(out, answer)
    if json_:
        print(json.dumps(answer, indent=2))
        return
    for name, rate in answer["clips_per_second"].items():
        say(f"{name:<11}{rate:10.1f} clips/s")
    say(
        f"{answer['times_as_fast']:.1f} times as fast; largest error {answer['largest_relative_error']:.1e} relative, "
        f"{answer['largest_absolute_error']:.1e} absolute"
    )


def run(args: Sequence[str]) -> None:
    """Measures as the command line says."""
    bind(measure, args, "avpretrain bench features")()
