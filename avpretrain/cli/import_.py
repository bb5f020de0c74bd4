"""`avpretrain import`."""

from __future__ import annotations

import dataclasses
import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_model_folder
from avpretrain.core.errors import UsageError
from avpretrain.core.files import atomic_path, write_json
from avpretrain.core.terminal import LONGEST, Console, styled
from avpretrain.methods.diffmavil.config import ModelConfig, load_config
from avpretrain.methods.diffmavil.conversions.choices import Format, Into

if TYPE_CHECKING:
    from avpretrain.methods.diffmavil.conversions.importers import ImportReport


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    format: Format,
    config: str = "",
    into: Into = "both",
    heads: int | None = None,
    audio_stats: tuple[float, float] | None = None,
    json: bool = False,
) -> None:
    """Turn another project's weights into a model of ours.

    Reads a .pth, .bin or .safetensors file; pickles that hold more than weights are refused. Writes a folder with
    model.safetensors, config.json, README.md and import.json, which says what became of every tensor; all commands that
    take a checkpoint take it. Takes seconds.

    Args:
        ckpt: The foreign checkpoint; of VideoMAE, DINOv2 and OpenELM the folder in the layout of transformers.
        out: Folder for the model.
        format: Whose layout it is.
        config: Config or preset that gives input sizes and decoders; without it, MAViL's.
        into: Which encoder to fill; an image ViT can go to either or to both.
        heads: Attention heads; without it, what the folder's config.json says, or one for every 64 values of the width.
        audio_stats: MEAN STD of the log-mel spectrograms that the audio encoder gets, where the format does not imply
            them; `avpretrain inspect` shows those of a data set.
        json: Print the report as JSON.
    """
    require_model_folder(out)
    if format == "openelm":
        if config or heads is not None or audio_stats is not None or into != "both":
            raise UsageError(
                "--config, --into, --heads and --audio-stats are for ViTs; openelm's folder says all itself"
            )
        _import_language_model(ckpt, out, json)
        return
    if heads is not None and heads < 1:
        raise UsageError(f"--heads must be at least 1, got {heads}")
    base = load_config(config).model if config else ModelConfig()
    if audio_stats is not None:
        mean, std = audio_stats
        if not std > 0:
            raise UsageError(f"--audio-stats takes a mean and a standard deviation above 0, got {mean:g} {std:g}")
        base = dataclasses.replace(base, input=dataclasses.replace(base.input, audio_mean=mean, audio_std=std))
    from avpretrain.methods.diffmavil.conversions.importers import import_checkpoint

    model, report = import_checkpoint(ckpt, format, base, into, heads)
    with atomic_path(out) as folder:
        model.save_pretrained(folder)
        write_json(folder / "import.json", dataclasses.asdict(report))
    if json:
        print(json_format.dumps(dataclasses.asdict(report), indent=2))
    else:
        _show(report, out)


def _import_language_model(ckpt: Path, out: Path, json: bool) -> None:
    from avpretrain.data.text.tokenizer import TOKENIZER_NAME, load_tokenizer
    from avpretrain.methods.openelm.conversions.huggingface import from_huggingface
    from avpretrain.methods.openelm.model import save_pretrained

    model = from_huggingface(ckpt)
    there = (ckpt / TOKENIZER_NAME).is_file()
    tokenizer = load_tokenizer(ckpt) if there else None
    if tokenizer is not None:
        tokenizer.check_fits(model.cfg.vocabulary, f"the vocabulary of {ckpt}")
    with atomic_path(out) as folder:
        folder.mkdir()
        save_pretrained(model, folder)
        if tokenizer is not None:
            tokenizer.save(folder)
    count = sum(p.numel() for p in model.parameters())
    if json:
        print(json_format.dumps({"model": str(out), "parameters": count, "tokenizer": there}, indent=2))
        return
    console = Console(highlight=False)
    console.print(f"language model: {count:,} parameters loaded")
    if not there:
        console.print(
            f"{ckpt} holds no {TOKENIZER_NAME}: put the one that it was trained with into {out}", soft_wrap=True
        )
    console.print(f"model: {out}", soft_wrap=True)


def _show(report: ImportReport, out: Path) -> None:
    console = Console(highlight=False)
    for part, count in report.loaded.items():
        console.print(f"{part}: {count:,} parameters loaded")
    for line in report.adapted:
        console.print(f"adapted: {line}")
    if report.missing:
        console.print(styled("freshly initialised:", "yellow"), ", ".join(report.missing))
    if report.unused:
        some = ", ".join(name[:LONGEST] for name in report.unused[:5])
        console.print(f"without a place here: {len(report.unused)} tensors, such as {some}")
    for line in report.warnings:
        console.print(styled("mind:", "yellow"), line, soft_wrap=True)
    console.print(f"model: {out}", soft_wrap=True)
