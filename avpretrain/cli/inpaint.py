"""`avpretrain inpaint`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from avpretrain.cli.shared.places import require_folder, require_inputs
from avpretrain.cli.shared.tables import show_table
from avpretrain.core.errors import UsageError
from avpretrain.core.terminal import Console
from avpretrain.evaluation.settings import InpaintConfig, InpaintRun
from avpretrain.measures.results import Estimate
from avpretrain.measures.scores import bounds
from avpretrain.measures.studies import Inpainting


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    data: Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")],
    /,
    how: OmitArgPrefixes[InpaintConfig] = InpaintConfig(),  # noqa: B008
    run: OmitArgPrefixes[InpaintRun] = InpaintRun(),  # noqa: B008
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Hide patches of clips and let the decoders fill them: images, audio, and errors next to those of simple fillings.

    Reads a checkpoint and a sharded data set. Writes spectrograms and frame strips (PNG), audio rebuilt from
    spectrograms (WAV) and errors.json to --out, or else to the run's eval/inpaint folder. Takes STEPS passes of both
    decoders over the clips: a few minutes for 64 clips, 50 steps and a small model on two CPU cores.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        data: Folders or URLs written by `avpretrain shards`.
        how: What is hidden and how it is filled.
        run: Which clips.
        out: Folder of the results.
        json: Print the errors as JSON.
    """
    for name, ratio in (("audio-ratio", how.audio_ratio), ("video-ratio", how.video_ratio)):
        if not 0 < ratio < 1:
            raise UsageError(f"--{name} must lie in (0, 1), got {ratio}")
    for name, number in (("clips", run.clips), ("batch-size", run.batch_size), ("steps", how.steps)):
        if number < 1:
            raise UsageError(f"--{name} must be at least 1, got {number}")
    folder = out
    if folder is None:
        from avpretrain.evaluation.results import result_path

        in_run = result_path(ckpt, None, "inpaint")
        folder = in_run.with_suffix("") if in_run else None
    if folder is None:
        raise UsageError(f"{ckpt} belongs to no run; name a folder for the results with --out")
    require_folder(folder)
    require_inputs(ckpt, data)
    from avpretrain.evaluation.generation.inpaint import run_inpaint

    result = run_inpaint(ckpt, data, folder, how, run)
    if json:
        print(json_format.dumps(result.to_json(), indent=2))
    else:
        _show(result, folder)


def _show(result: Inpainting, folder: Path) -> None:
    from avpretrain.evaluation.generation.filling import METHODS

    rows = [
        [method.replace("_", " "), *(_cell(errors.get(method)) for errors in result.mse.values())] for method in METHODS
    ]
    console = Console()
    title = f"mean squared error on hidden patches, {result.clips} clips (95% interval)"
    show_table(("filling", *result.mse), rows, title, console=console)
    if source := result.settings["statistics"]:
        where = {"neighbours": "come from visible neighbours", "own": "are the hidden patches' own"}[source]
        console.print(f"The model predicts normalised patches; means and variances {where}.")
    console.print(f"images, audio and errors.json: {folder}", highlight=False)


def _cell(error: Estimate | None) -> str:
    """'0.1234 (0.1200 to 0.1300)'."""
    if error is None:
        return "-"
    ci = bounds(error.ci)
    return f"{error.value:.4f} " + ("(unknown)" if ci is None else f"({ci[0]:.4f} to {ci[1]:.4f})")
