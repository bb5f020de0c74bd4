"""`avpretrain spectrum`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from avpretrain.cli.shared.studies import run_study
from avpretrain.cli.shared.tables import show_table
from avpretrain.core.terminal import Console
from avpretrain.evaluation.settings import SpectrumConfig
from avpretrain.measures.results import Estimate
from avpretrain.measures.scores import points
from avpretrain.measures.studies import Spectrum


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

    def measure() -> Spectrum:
        from avpretrain.evaluation.generation.spectrum import run_spectrum

        return run_spectrum(ckpt, data, how)

    least = {"clips": 1, "steps": 1, "batch_size": 1}
    run_study("spectrum", ckpt, data, how, least, out, json, measure, _show)


def _show(result: Spectrum, console: Console) -> None:
    from avpretrain.evaluation.generation.spectrum import METHODS

    rows = []
    columns = {f"{name}_{place}": f"{name}, {place}" for name in ("missed", "detail") for place in ("low", "high")}
    for method in METHODS:
        if method in result.methods:
            cells: list[Estimate] = [getattr(result.methods[method], key) for key in columns]
            rows.append([method.replace("_", " "), *(f"{c.value:.1%} ({points(c.ci)})" for c in cells)])
    title = f"detail of hidden spectrogram patches in %, {result.clips} clips (95% interval)"
    show_table(("reconstruction", *columns.values()), rows, title, console=console)
    console.print("Shares of the true detail's energy. Low and high: the halves of the mel bins.", highlight=False)
