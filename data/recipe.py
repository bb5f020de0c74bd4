"""What the scripts of public sets share: an optional download, then `avpretrain shards` with the set's options."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from avpretrain.cli.main import main as avpretrain
from avpretrain.cli.main import one_line_errors
from avpretrain.core.errors import UsageError
from avpretrain.core.terminal import Console, say
from avpretrain.data.fetch.recipes import RECIPES, Downloaded, FetchOptions, Recipe, download


def main(name: str, description: str, options: Sequence[str] = ()) -> None:
    """Runs the script of a set.

    Args:
        name: in RECIPES.
        description: the script's docstring, shown by --help.
        options: of `avpretrain shards`, that the set wants.
    """
    recipe = RECIPES[name]
    args = sys.argv[1:]
    given, rest = _parser(recipe, description).parse_known_args([a for a in args if a != "--debug"])
    with one_line_errors("--debug" in args):
        values = {f.name: getattr(given, f.name) for f in dataclasses.fields(FetchOptions)}
        changed = {key: value for key, value in values.items() if value is not None}
        if changed and not given.download:
            raise UsageError(f"--{next(iter(changed)).replace('_', '-')} is for a download; add --download")
        table: list[str] = []
        if given.download:
            say(f"terms of {name}: {recipe.terms}")
            found = _download(recipe, given.folder, FetchOptions(**changed))
            table = ["--table", str(found.tables[0])] if values["table"] else []
    debug = ["--debug"] if "--debug" in args else []
    source = ["--source", recipe.source]
    avpretrain(["shards", str(given.folder), str(given.shards), *source, *options, *table, *rest, *debug])


def _download(recipe: Recipe, folder: Path, options: FetchOptions) -> Downloaded:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("download", total=None)

        def show(done: int, total: int, lost: int) -> None:
            bar.update(line, completed=done, total=total, description=f"download, {lost} can't be had")

        found = download(recipe, folder, options, show)
    what = "files" if recipe.clips is None else "clips"
    say(f"{folder}: {found.present} of {found.wanted} {what} are here")
    if found.lost:
        say(f"{len(found.lost)} could not be had (see {folder / 'unavailable.csv'}):")
        for reason in found.reasons:
            say(f"  {reason}")
    return found


def _parser(recipe: Recipe, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Other options are those of `avpretrain shards`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with the set's files, or where to download them")
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="data set to write")
    parser.add_argument("--download", action="store_true", help="first download what FOLDER lacks; resumes")
    parser.add_argument("--mirror", metavar="URL", help="folder on another server that has the owner's files")
    parser.add_argument("--jobs", type=int, metavar="N", help="downloads at a time (4)")
    parser.add_argument("--any-version", action="store_true", default=None,
                        help="take files that are not of the size or checksum that the owner states")  # fmt: skip
    parser.add_argument("--try-gone", action="store_true", default=None,
                        help="ask again for what an earlier run was told is gone")  # fmt: skip
    hidden = argparse.SUPPRESS if recipe.clips is None else None
    parser.add_argument("--segments", dest="table", metavar="CSV", help=hidden or "path or address of another list")
    parser.add_argument("--limit", type=int, metavar="N", help=hidden or "only the first N clips of the list")
    parser.add_argument("--yt-dlp", metavar="COMMAND",
                        help=hidden or "yt-dlp with options, e.g. 'yt-dlp --cookies FILE'")  # fmt: skip
    parser.add_argument("--whole-videos", action="store_true", default=None,
                        help=hidden or "whole videos, cut when they are sharded, without ffmpeg")  # fmt: skip
    return parser
