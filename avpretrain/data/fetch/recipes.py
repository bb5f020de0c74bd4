"""Public data sets: where their owners offer them, under which terms, and how they come into a folder.

Sources (`data/sources`) read the folders; a set whose owner offers no files, but a list of YouTube's videos, comes by
yt-dlp.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import MAX_TEXT_BYTES, read_json
from avpretrain.core.locks import locked
from avpretrain.data.choices import SourceName
from avpretrain.data.fetch.archives import unpack
from avpretrain.data.fetch.http import LostError, Remote, check_url, fetch
from avpretrain.data.fetch.lost import Lost, LostList
from avpretrain.data.fetch.parallel import in_threads
from avpretrain.data.fetch.youtube import Clip, Downloader
from avpretrain.data.sources.audioset import COLUMNS as AUDIOSET_COLUMNS
from avpretrain.data.sources.base import read_rows
from avpretrain.data.sources.vggsound import SECONDS as VGGSOUND_SECONDS

DOWNLOADS = ".download"
"""Hidden folder of what is not complete, and of marks of what was unpacked."""
VIDEOS = "videos"
LATEST = 1e6
"""Seconds after which no video lasts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A file of a data set."""

    remote: Remote
    into: str | None = None
    """The folder below the set's that it is unpacked to, "" = the set's own; none = a table, which stays as it is."""
    required: bool = True
    """Whether the set is of no use without it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A data set as its owner offers it."""

    source: SourceName
    terms: str
    parts: tuple[Part, ...]
    listing: Remote | None = None
    """A record of the owner's archive that states sizes and checksums of the parts."""
    clips: Literal["audioset", "vggsound"] | None = None
    """Whose layout tables of segments have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchOptions:
    """How a set is downloaded."""

    mirror: str = ""
    """Address of a folder with the set's files under their owner's names; empty = the owner's server."""
    jobs: int = 4
    """Files or clips at a time."""
    any_version: bool = False
    """Take files whose size or checksum is not what the owner states."""
    table: str = ""
    """List of segments in the set's layout, a path or an address, in place of the owner's."""
    limit: int = 0
    """Clips to have at most; 0 = all."""
    yt_dlp: str = "yt-dlp"
    """Command, with options."""
    whole_videos: bool = False
    """Whole videos, which are cut when they are sharded, rather than segments."""
    try_gone: bool = False
    """Ask again for what an earlier run was told is gone."""

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.limit < 0:
            raise UsageError(f"jobs must be at least 1 and limit at least 0, got {self.jobs} and {self.limit}")
        if self.mirror:
            check_url(self.mirror)


@dataclass(frozen=True, kw_only=True, slots=True)
class Downloaded:
    """What is there after a download."""

    present: int
    """Files or clips."""
    wanted: int
    tables: tuple[Path, ...] = ()
    """Lists of segments, of sets that have such."""
    lost: tuple[Lost, ...] = ()
    reasons: tuple[str, ...] = field(default=())
    """The most frequent ones, a line each."""


Progress = Callable[[int, int, int], None]
"""Called with how many items are done, how many there are, and how many could not be had."""


def _archive(name: str, url: str, into: str = "", size: int | None = None, checksum: str = "") -> Part:
    return Part(remote=Remote(name=name, url=url, size=size, checksum=checksum), into=into)


def _table(url: str, required: bool = True) -> Part:
    return Part(remote=Remote(name=url.rsplit("/", 1)[1], url=url), required=required)


_AUDIOSET = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
_GRID = "https://zenodo.org/records/3625687/files"
_GRID_PARTS = ("alignments", *(f"s{talker}" for talker in range(1, 35) if talker != 21))  # of s21 there is no video

RECIPES: dict[str, Recipe] = {
    "audioset": Recipe(
        source="audioset",
        terms="lists: CC BY 4.0, Google; videos: their owners', under YouTube's terms of service",
        parts=tuple(
            _table(f"{_AUDIOSET}/{name}.csv", required=name != "class_labels_indices")
            for name in ("balanced_train_segments", "eval_segments", "class_labels_indices")
        ),
        clips="audioset",
    ),
    "vggsound": Recipe(
        source="vggsound",
        terms="list: CC BY 4.0, Visual Geometry Group; videos: their owners', under YouTube's terms of service",
        parts=(_table("https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv"),),
        clips="vggsound",
    ),
    "esc50": Recipe(
        source="esc50",
        terms="CC BY-NC 3.0 (its part ESC-10: CC BY 3.0)",
        parts=(_archive("ESC-50-master.zip", "https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"),),
    ),
    "speechcommands": Recipe(
        source="speechcommands",
        terms="CC BY 4.0",
        parts=(
            _archive(
                "speech_commands_v0.02.tar.gz",
                "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
                size=2_428_923_189,
                checksum="sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
            ),
        ),
    ),
    "fsdd": Recipe(
        source="fsdd",
        terms="CC BY-SA 4.0",
        parts=(
            _archive(
                "free-spoken-digit-dataset-master.zip",
                "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip",
            ),
        ),
    ),
    "grid": Recipe(
        source="grid",
        terms="CC BY 4.0",
        parts=tuple(
            Part(
                remote=Remote(name=f"{name}.zip", url=f"{_GRID}/{name}.zip?download=1"),
                into="align" if name == "alignments" else name,
                required=False,
            )
            for name in _GRID_PARTS
        ),
        listing=Remote(name="grid_record.json", url="https://zenodo.org/api/records/3625687", most=MAX_TEXT_BYTES),
    ),
}
"""Name of a set to where it is had."""


def download(
    recipe: Recipe,
    folder: Path,
    options: FetchOptions = FetchOptions(),
    on_progress: Progress | None = None,
) -> Downloaded:
    """Brings a set into a folder. What is there is not asked for again; what can't be had is noted in unavailable.csv.

    Raises:
        UsageError: an option does not serve this set, or yt-dlp is missing.
        UserError: a file without which there is no set can't be had, or nothing at all, or the owner's record of
            checksums; or another process downloads into that folder.
    """
    if recipe.clips is None and (options.table or options.limit or options.whole_videos):
        raise UsageError("--segments, --limit and --whole-videos are for sets of YouTube's videos")
    videos = None
    if recipe.clips is not None:
        videos = Downloader(options.yt_dlp, folder / VIDEOS, options.whole_videos)
    with locked(folder, "downloading"):
        lost = LostList(folder)
        try:
            parts = _with_listing(recipe, folder, options)
            if options.table:
                parts = tuple(part for part in parts if not part.required)
            present = _fetch_parts(parts, folder, options, lost, on_progress if videos is None else None)
            if videos is None:
                result = Downloaded(present=present, wanted=len(parts))
            else:
                tables = _tables(parts, folder, options)
                result = _fetch_clips(recipe, tables, videos, options, lost, on_progress)
        finally:
            lost.close()
        if not result.present:
            gone = any(item.final for item in lost.items.values())
            raise UserError(
                f"nothing of the set could be had ({'; '.join(lost.reasons(1))}); see {lost.path}"
                + ("; --try-gone asks again for what is gone" if gone else "")
            )
        return dataclasses.replace(result, lost=tuple(lost.items.values()), reasons=tuple(lost.reasons()))


def _address(remote: Remote, options: FetchOptions) -> Remote:
    """The same on the server that is asked, with what is known of it."""
    url = f"{options.mirror.rstrip('/')}/{remote.name}" if options.mirror else remote.url
    if options.any_version:
        return Remote(name=remote.name, url=url)
    return dataclasses.replace(remote, url=url)


def _with_listing(recipe: Recipe, folder: Path, options: FetchOptions) -> tuple[Part, ...]:
    """The parts with the sizes and checksums that the owner's record states, a mirror's files too.

    Raises:
        UserError: the record can't be had, or is none.
    """
    if recipe.listing is None or options.any_version:
        return recipe.parts
    url = recipe.listing.url
    unchecked = "--any-version takes files unchecked"
    try:
        path = fetch(recipe.listing, folder / DOWNLOADS)
    except LostError as error:
        raise UserError(f"the record of sizes and checksums, {url}, can't be had: {error}; {unchecked}") from None
    try:
        values = read_json(path, "record")
        stated = {file["key"]: (int(file["size"]), str(file["checksum"])) for file in values["files"]}
        if not any(part.remote.name in stated for part in recipe.parts):
            raise ValueError("it names no file of the set")
        return tuple(
            dataclasses.replace(part, remote=dataclasses.replace(part.remote, size=size, checksum=checksum))
            for part in recipe.parts
            for size, checksum in (stated.get(part.remote.name, (None, "")),)
        )
    except (UserError, ValueError, KeyError, TypeError, OverflowError) as error:
        path.unlink(missing_ok=True)  # the next run asks for it again
        why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{url} is no record of sizes and checksums: {why}; run again, or {unchecked}") from None


def _fetch_parts(
    parts: Sequence[Part], folder: Path, options: FetchOptions, lost: LostList, on_progress: Progress | None
) -> int:
    """How many parts are there."""

    def work(part: Part) -> Lost | None:
        name = part.remote.name
        # What the owner says is gone a mirror may have, and what a mirror lacks may be a mistyped address.
        if lost.is_gone(name) and not (options.try_gone or options.mirror or part.required):
            return lost.items[name]
        try:
            _fetch_part(part, folder, options)
        except LostError as error:
            if part.required:
                what = "name a server that has it by --mirror" if error.final else "run the same command to resume"
                raise UserError(f"{_address(part.remote, options).url}: {error}; {what}") from None
            return Lost(name, lost.is_gone(name) if options.mirror else error.final, str(error))
        return None

    present = failed = 0
    for part, missing in in_threads(parts, work, options.jobs):
        if missing is None:
            present += 1
            lost.remove(part.remote.name)
        else:
            failed += 1
            lost.add(missing)
        if on_progress is not None:
            on_progress(present + failed, len(parts), failed)
    return present


def _fetch_part(part: Part, folder: Path, options: FetchOptions) -> None:
    remote, downloads = _address(part.remote, options), folder / DOWNLOADS
    if part.into is None:
        fetch(remote, folder)
        return
    mark = downloads / f"{remote.name}.done"
    if mark.is_file() and (folder / part.into).is_dir():
        return
    archive = fetch(remote, downloads)
    unpack(archive, folder / part.into)
    mark.write_text("")
    archive.unlink()


def _tables(parts: Sequence[Part], folder: Path, options: FetchOptions) -> tuple[Path, ...]:
    """The lists of segments."""
    if not options.table:
        return tuple(folder / part.remote.name for part in parts if part.required)
    if "://" in options.table:
        name = options.table.split("?")[0].rstrip("/").rsplit("/", 1)[1]
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise UsageError(f"{options.table} names no file; give the address of a list")
        remote = Remote(name=name, url=options.table)
        try:
            return (fetch(remote, folder),)
        except LostError as error:
            raise UserError(f"{options.table}: {error}") from None
    path = Path(options.table)
    if not path.is_file():
        raise UserError(f"no list of segments at {path}")
    return (path,)


def segments(layout: Literal["audioset", "vggsound"], table: Path) -> list[Clip]:
    """The clips that a list of segments names.

    Raises:
        UserError: it is not of that layout.
    """
    try:
        if layout == "vggsound":
            rows = read_rows(table, ["id", "start", "label", "split"])
            clips = [Clip(row["id"], float(row["start"]), float(row["start"]) + VGGSOUND_SECONDS) for row in rows]
        else:
            rows = [r for r in read_rows(table, AUDIOSET_COLUMNS) if r["YTID"] and not r["YTID"].startswith("#")]
            clips = [Clip(row["YTID"], float(row["start_seconds"]), float(row["end_seconds"])) for row in rows]
    except (ValueError, TypeError) as error:
        raise UserError(f"{table} is no list of segments of {layout}: {error}") from None
    wrong = next((clip for clip in clips if not 0 <= clip.start < clip.end <= LATEST), None)
    if wrong is not None:
        raise UserError(f"{table}: {wrong.id[:20]} is to be cut from {wrong.start:g} to {wrong.end:g} s; mend that row")
    return clips


def _fetch_clips(
    recipe: Recipe,
    tables: Sequence[Path],
    videos: Downloader,
    options: FetchOptions,
    lost: LostList,
    on_progress: Progress | None,
) -> Downloaded:
    assert recipe.clips is not None
    named = {clip.name(videos.whole): clip for table in tables for clip in segments(recipe.clips, table)}
    wanted = dict(list(named.items())[: options.limit or None])
    here = videos.here()
    todo = [name for name in wanted if name not in here and (options.try_gone or not lost.is_gone(name))]

    def work(name: str) -> Lost | None:
        try:
            videos.fetch(wanted[name])
        except LostError as error:
            return Lost(name, error.final, str(error))
        return None

    present = sum(name in here for name in wanted)
    failed = len(wanted) - present - len(todo)
    for name, missing in in_threads(todo, work, options.jobs):
        if missing is None:
            present += 1
            lost.remove(name)
        else:
            failed += 1
            lost.add(missing)
        if on_progress is not None:
            on_progress(present + failed, len(wanted), failed)
    return Downloaded(present=present, wanted=len(wanted), tables=tuple(tables))
