"""`avpretrain embed`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.progress import track
from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file, require_inputs
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.terminal import Console, plain_line
from avpretrain.evaluation.settings import Modality, Per


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILES")],
    /,
    out: Path,
    modality: Modality = "both",
    per: Per = "file",
) -> None:
    """Turn audio and video files of any length into vectors.

    Reads a checkpoint and media files, or folders of them at any depth, in the order of their paths. Writes one table:
    columns path, modality, start, end (seconds), embedding. Takes about a second a minute of audio for a small encoder
    on a CPU; ranks share the files. Those that can't be read are named and left out.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        files: Audio or video files, or folders: of these all files with the extension of a medium that are not hidden.
        out: Table to write, .npz or .parquet.
        modality: What to embed; files without it are left out ('both' takes what there is).
        per: One vector a file, a window of the length the model was trained on, or a step in time.
    """
    if not files:
        raise UsageError("no files to embed; name them after the checkpoint")
    require_file(out, suffixes=(".npz", ".parquet"))
    require_inputs(ckpt)
    files = listed(files)
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from avpretrain.data.container import DecodeError
    from avpretrain.evaluation.longform import Row, embed_file, write_rows
    from avpretrain.methods.load import load_model

    state = PartialState()
    model = load_model(ckpt).to(state.device)
    console = Console(stderr=True)
    mine: list[tuple[int, list[Row] | None]] = []
    numbered = list(enumerate(files))[state.process_index :: state.num_processes]
    hidden = not (state.is_main_process and console.is_terminal)
    for number, path in track(numbered, "embed", console=console, transient=True, disable=hidden):
        try:
            dropped: dict[str, float] = {}
            mine.append((number, embed_file(model, path, modality, per, dropped)))
            for what, amount in sorted(dropped.items()):
                console.print(f"{plain_line(path)}: {amount:.4g} {what}", highlight=False, soft_wrap=True, markup=False)
        except DecodeError as error:
            mine.append((number, None))
            console.print(
                f"left out: {plain_line(path)}: {plain_line(error)}", highlight=False, soft_wrap=True, markup=False
            )
    found = dict(gather_object(mine))
    rows = [row for number in sorted(found) for row in found[number] or ()]
    failed = sum(done is None for done in found.values())
    if not rows:
        raise UserError(f"none of the {len(files)} files could be embedded; the reasons stand above")
    if not state.is_main_process:
        return
    write_rows(out, rows)
    console.print(f"{len(rows)} embeddings of {len(files) - failed} files: {out}", highlight=False, soft_wrap=True)


def listed(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files that are meant, each once: folders give their media, sorted by path.

    Raises:
        UserError: a folder holds none, or nothing is there.
    """
    from avpretrain.data.sources.base import MEDIA_EXTENSIONS, walk

    if not any(path.exists() for path in paths):
        raise UserError(f"there is no {paths[0]}; name audio or video files, or folders of them")
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [path / name for name in walk(path) if Path(name).suffix.lower() in MEDIA_EXTENSIONS]
        if not inside:
            raise UserError(
                f"{path} holds no media files; they are known by their extension (.mp4, .webm, .wav, .flac ...)"
            )
        found += inside
    return tuple(dict.fromkeys(found))
