"""`avpretrain spectrum`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from avpretrain.cli.shared.places import require_file, require_inputs
from avpretrain.cli.shared.tables import show_table
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import Console
from avpretrain.evaluation.settings import SpectrumConfig
from avpretrain.measures.scores import points


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    data: Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")],
    /,
    how: OmitArgPrefixes[SpectrumConfig] = SpectrumConfig(),  # noqa: B008
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure reconstructed spectrograms by frequency: what share of the hidden detail is missed, low and high.

    Reads a checkpoint and a sharded data set. Writes the result as JSON to --out or else into the run's eval/ folder.
    Takes STEPS passes of the audio decoder over the clips: seconds on a GPU, about a minute on two CPU cores for 256
    clips and a small model.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        data: Folders or URLs written by `avpretrain shards`.
        how: Which clips, what is hidden, and how it is filled.
        out: File of the result.
        json: Print the result as JSON.
    """
    if not 0 < how.ratio < 1:
        raise UsageError(f"--ratio must lie in (0, 1), got {how.ratio}")
    for name, number in (("clips", how.clips), ("steps", how.steps), ("batch-size", how.batch_size)):
        if number < 1:
            raise UsageError(f"--{name} must be at least 1, got {number}")
    require_file(out)
    require_inputs(ckpt, data)
    from avpretrain.evaluation.generation.spectrum import run_spectrum
    from avpretrain.evaluation.results import result_path

    result = run_spectrum(ckpt, data, how)
    path = result_path(ckpt, out, "spectrum", how.split)
    if path:
        write_json(path, result)
    if json:
        print(json_format.dumps(result, indent=2))
    else:
        _show(result, path)


def _show(result: dict[str, Any], path: Path | None) -> None:
    from avpretrain.evaluation.generation.spectrum import METHODS

    console = Console()
    rows = []
    columns = {f"{name}_{place}": f"{name}, {place}" for name in ("missed", "detail") for place in ("low", "high")}
    for method in METHODS:
        if method in result["methods"]:
            cells = [result["methods"][method][key] for key in columns]
            rows.append([method.replace("_", " "), *(f"{c['value']:.1%} ({points(c['ci'])})" for c in cells)])
    title = f"detail of hidden spectrogram patches in %, {result['clips']} clips (95% interval)"
    show_table(("reconstruction", *columns.values()), rows, title, console=console)
    console.print("Shares of the true detail's energy. Low and high: the halves of the mel bins.", highlight=False)
    if path:
        console.print(f"result: {path}", highlight=False, soft_wrap=True)
