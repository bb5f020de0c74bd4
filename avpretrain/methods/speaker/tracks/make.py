"""A source to a data set of face tracks: one part a video, in several processes; once stopped, it can be resumed."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import multiprocessing
import re
import shutil
import signal
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import atomic_path, clear_leftovers, open_text
from avpretrain.core.terminal import brief
from avpretrain.data.container import DecodeError
from avpretrain.data.sources.base import VIDEO_EXTENSIONS, walk
from avpretrain.data.splits import ROLES
from avpretrain.methods.speaker.ava import AvaRows, read_rows
from avpretrain.methods.speaker.config import FRAME_SAMPLES
from avpretrain.methods.speaker.data import Heard, Mixture, StoredTrack, TrackClip, TrackClips, TrackIndex, is_track_set
from avpretrain.methods.speaker.metric import average_precision
from avpretrain.methods.speaker.tracks.config import SourceKind, TracksConfig
from avpretrain.methods.speaker.tracks.cut import Boxes, cut_video, tracks_of
from avpretrain.methods.speaker.tracks.heads import make_scene, scene_frames, scene_rows
from avpretrain.methods.speaker.tracks.write import Part, join, read_part, write_part, write_skipped
from avpretrain.methods.speaker.video_file import video_file

SYNTHETIC: Literal["synthetic"] = "synthetic"
"""What SRC is called where nothing is read."""
METADATA = "metadata.csv"
LEAST_SHIFT = 10
"""Frames (0.4 s) by which audio is shifted at least in a mixture that has it out of time."""
MIX_DB = 5.0
"""Another track's audio is up to so much louder or softer than the own."""
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Job:
    """One video, or one synthetic scene."""

    video: str
    split: str
    path: Path | None
    tracks: tuple[Boxes, ...] = ()
    number: int = 0
    """Of the scene."""


@dataclass(frozen=True)
class TracksReport:
    """What was made."""

    index: TrackIndex
    missing: list[str]
    """Videos that a table names and that are not there."""
    skipped: dict[str, str]
    """Why other videos gave no tracks."""
    loudness: dict[str, float]
    """Average precision of each split by the loudness of a frame alone: what audio tells without a look at the face."""


def make_tracks(src: str, out: Path, cfg: TracksConfig, on_video: Callable[[int, int], None]) -> TracksReport:
    """Makes `out`, whole or not at all; what is done of it is kept in `out`.parts until then.

    Args:
        src: a folder, or 'synthetic'.
        out: folder of the data set; new, or one that was made from the same.
        cfg: how.
        on_video: called with the numbers of videos that are done, and of all.

    Raises:
        UsageError: the options do not fit the source.
        UserError: a table or a folder is wrong, or no video gives a track.
    """
    cfg = replace(cfg, source=kind_of(src, cfg))
    if cfg.hard_negatives is None:
        cfg = replace(cfg, hard_negatives=1.0 if cfg.source == "grid" else 0.0)
    if out.exists() and not is_track_set(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something else than face tracks; name a new folder")
    jobs, missing = list_jobs(src, cfg)
    keys = [_key(job, cfg) for job in jobs]
    made_from = {"settings": _settings(cfg), "parts": hashlib.sha256("".join(keys).encode()).hexdigest()}
    if is_track_set(out):
        index = TrackIndex(out)
        if {name: index.values.get("made_from", {}).get(name) for name in made_from} != made_from:
            raise UserError(f"{out} holds tracks that were made from something else or otherwise; name a new folder")
        return _report(index, missing)
    folder = out.with_name(f"{out.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    parts = []
    tasks = list(zip(jobs, keys, strict=True))
    with closing(_mapped(partial(make_part, folder, cfg), tasks, cfg.processes)) as made:
        for path, part in made:
            parts.append((path, part))
            on_video(len(parts), len(jobs))
    skipped = {job.video: part.skipped for job, (_, part) in zip(jobs, parts, strict=True) if part.skipped}
    if len(skipped) == len(jobs):
        video, why = next(iter(skipped.items()))
        raise UserError(f"none of {len(jobs)} videos gives a face track; {video}, for one, {why}")
    index = join(
        out, parts, cfg.face_size, cfg.margin, partial(mixtures, cfg.hard_negatives or 0.0, cfg.seed),
        {**made_from, "skipped": skipped},
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    return _report(index, missing)


def _report(index: TrackIndex, missing: list[str]) -> TracksReport:
    skipped = index.values.get("made_from", {}).get("skipped", {})
    return TracksReport(index, missing, skipped, {split: loudness_ap(index.root, split) for split in index.splits})


def _settings(cfg: TracksConfig) -> dict[str, Any]:
    """What decides the result, apart from the source's files."""
    values = asdict(cfg)
    for name in ("workers", "table", "as_videos"):
        del values[name]
    return values


def kind_of(src: str, cfg: TracksConfig) -> SourceKind:
    """Kind of a source: what the config says, or what SRC holds.

    Raises:
        UsageError: there is no such folder.
    """
    if src == SYNTHETIC and cfg.source in ("auto", SYNTHETIC) and not Path(src).is_dir():
        return SYNTHETIC
    if cfg.source == SYNTHETIC:
        raise UsageError(f"source synthetic reads nothing: name it in place of SRC, got {src}")
    if cfg.as_videos:
        raise UsageError("as_videos goes with source synthetic alone")
    if not Path(src).is_dir():
        raise UsageError(f"no folder {src}; name one with videos and tables, or the word synthetic")
    if cfg.source == "auto":
        return "grid" if (Path(src) / METADATA).is_file() else "ava"
    return cfg.source


# --- what there is to do --------------------------------------------------------------------------------------------


def list_jobs(src: str, cfg: TracksConfig) -> tuple[list[Job], list[str]]:
    """The videos that have tracks, and the names of those that are missing.

    Raises:
        UserError: there is no table, one is wrong, or no video that it names is there, or two are of one name.
    """
    if cfg.source == SYNTHETIC:
        return [Job(f"scene-{i:06d}", scene_split(i, cfg), None, number=i) for i in range(cfg.scenes)], []
    root = Path(src)
    paths = list(walk(root))
    videos: dict[str, list[Path]] = {}
    for path in paths:
        if Path(path).suffix.lower() in VIDEO_EXTENSIONS:
            videos.setdefault(Path(path).stem, []).append(root / path)
    splits = _metadata(root / METADATA) if cfg.source == "grid" else None
    found: dict[tuple[str, str], list[Boxes]] = {}
    seen: dict[str, Path] = {}
    for table in _tables(root, paths, cfg.table):
        rows = read_rows(table)
        _refuse_twice(rows, seen)
        for video, tracks in tracks_of(rows, cfg.max_gap, cfg.min_frames).items():
            split = split_of_table(table, root, cfg.table) if splits is None else splits.get(video, "")
            if split:
                found.setdefault((split, video), []).extend(tracks)
    if not found:
        raise UserError(f"the tables of {src} hold no track of {cfg.min_frames} frames or more")
    missing = sorted({video for _, video in found if video not in videos})
    for video in sorted({video for _, video in found}):
        if len(videos.get(video, ())) > 1:
            raise _named_alike(f"video {video} of the tables", videos[video])
    jobs = [
        Job(video, split, videos[video][0], tuple(sorted(tracks, key=lambda t: (t.first, t.track))))
        for (split, video), tracks in sorted(found.items())
        if video in videos
    ]
    if not jobs:
        raise UserError(f"none of the {len(missing)} videos that the tables name is in {src}, e.g. {missing[0]}")
    return jobs, missing


def _named_alike(what: str, paths: Sequence[object]) -> UserError:
    return UserError(
        f"{what} may be {paths[0]} or {paths[1]}: tables name videos by their file's name without its ending; rename "
        "one of them, in the tables too, or move it elsewhere"
    )


def _tables(root: Path, paths: Sequence[str], named: Sequence[Path]) -> list[Path]:
    """The tables of a source.

    Raises:
        UserError: there are none.
    """
    found = []
    for place in named:
        if place.is_dir():
            inside = [place / path for path in walk(place) if path.endswith((".csv", ".csv.gz"))]
            if not inside:
                raise UserError(f"no table (.csv, .csv.gz) in {place}")
            found += inside
        elif place.exists():
            found.append(place)
        else:
            raise UserError(f"no table {place}; name one, or a folder of them")
    if not named:
        found = [root / path for path in paths if path.endswith((".csv", ".csv.gz")) and Path(path).name != METADATA]
    if not found:
        raise UserError(f"no table (.csv, .csv.gz) in {root}; name one with --table")
    return found


def _refuse_twice(rows: AvaRows, seen: dict[str, Path]) -> None:
    for entity in rows.entities:
        if entity in seen:
            raise UserError(f"face {entity} is in {seen[entity]} and in {rows.path}; name one of them with --table")
        seen[entity] = rows.path


def split_of_table(table: Path, root: Path, named: Sequence[Path] = ()) -> str:
    """The split that a table's name says, or that of the folder it lies in; without one, train.

    Args:
        table: its file.
        root: SRC, whose own name says nothing, and neither does what lies above it.
        named: tables and folders of them that `--table` names; what lies above a folder says nothing.
    """
    names, folder, root = [table.name], table.parent.absolute(), root.absolute()
    below = root in folder.parents
    if below or any(top == folder or top in folder.parents for top in (place.absolute() for place in named)):
        names.append(folder.name)
    for part in names:
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in ROLES:
                return ROLES[word]
    return "train"


def _metadata(path: Path) -> dict[str, str]:
    """The split of each video.

    Raises:
        UserError: the table is not there, lacks a column, or has two files of one name.
    """
    try:
        with open_text(path) as file:
            reader = csv.DictReader(file)
            missing = [name for name in ("file", "split") if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path} lacks the columns {', '.join(missing)}; it takes file and split")
            splits, files = dict[str, str](), dict[str, str]()
            for row in reader:
                file_name = row["file"] or ""
                stem = Path(file_name).stem
                if files.setdefault(stem, file_name) != file_name:
                    raise _named_alike(f"video {stem} of {path}", [files[stem], file_name])
                splits[stem] = row["split"] or "train"
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    wrong = next((split for split in splits.values() if not re.fullmatch(r"\w[\w-]{0,99}", split)), None)
    if wrong is not None:
        raise UserError(f"{path} has split {brief(wrong)}; names of splits are letters, digits, _ and -")
    return splits


def scene_split(index: int, cfg: TracksConfig) -> str:
    """The split of a synthetic scene: a golden-ratio sequence, so that any number of scenes is divided well."""
    share = (index * _GOLDEN + 0.5) % 1
    if share < cfg.test_share:
        return "test"
    return "val" if share < cfg.test_share + cfg.val_share else "train"


# --- doing it -------------------------------------------------------------------------------------------------------


def _key(job: Job, cfg: TracksConfig) -> str:
    """What a part is made from."""
    told: list[Any] = [job.video, job.split, cfg.face_size, cfg.margin]
    if job.path is None:
        told += [job.number, cfg.seed, cfg.seconds, cfg.max_faces, cfg.symmetry, cfg.time_reversed]
    else:
        status = job.path.stat()
        told += [status.st_size, status.st_mtime_ns, "causal"]  # a frame of the grid shows nothing that is later
        told += [
            [t.track, t.first, zlib.crc32(t.box_T4.tobytes()), zlib.crc32(t.label_T.tobytes())] for t in job.tracks
        ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def make_part(folder: Path, cfg: TracksConfig, task: tuple[Job, str]) -> tuple[Path, Part]:
    """The part of one video, unless it is there."""
    job, key = task
    path = folder / f"{key[:32]}.part"
    part = read_part(path, key)
    if part is not None:
        return path, part
    try:
        return path, write_part(path, job.split, _clips(job, cfg), key)
    except DecodeError as error:
        return path, write_skipped(path, job.split, key, str(error))


def _clips(job: Job, cfg: TracksConfig) -> Iterator[TrackClip]:
    if job.path is None:
        yield from make_scene(
            job.number, cfg.seed, cfg.seconds, cfg.face_size, cfg.max_faces, cfg.symmetry, cfg.time_reversed
        ).clips()
    else:
        yield from cut_video(job.path, job.video, list(job.tracks), cfg.face_size, cfg.margin)


def _mapped(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Generator[Any]:
    """`function` of each task, in order. Where it is broken off, its processes end at once, whatever they are at.

    Raises:
        UserError: a process died.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts)
    try:
        yield from pool.map(function, tasks)
        pool.shutdown()
    except BaseException as error:  # also Ctrl-C, and whoever reads this stops
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        if not isinstance(error, BrokenProcessPool):
            raise
        raise UserError("a worker died, perhaps for lack of memory; run again with fewer --workers to go on") from None


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole group; only the parent answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def mixtures(share: float, seed: int, split: str, tracks: list[StoredTrack]) -> tuple[Mixture, ...]:
    """Hard negatives of a split: faces with audio that is loud where they do not speak.

    swapped: another track's audio, of another video, in place of the own; shifted: the own, at least 0.4 s early or
    late; mixed: the own and another's.

    Args:
        share: of each kind, for each track; the rest of 1 is drawn.
        seed: of what is drawn.
        split: its name.
        tracks: that are stored.
    """
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    videos = sorted({track.video for track in tracks})
    found = []
    for number, track in enumerate(tracks):
        for kind in ("swapped", "shifted", "mixed"):
            for _ in range(int(share) + bool(rng.random() < share % 1)):
                other = int(rng.integers(len(tracks)))
                while len(videos) > 1 and tracks[other].video == track.video:
                    other = int(rng.integers(len(tracks)))
                if kind == "shifted":
                    if track.frames <= 2 * LEAST_SHIFT:
                        continue
                    shift = int(rng.integers(LEAST_SHIFT, track.frames - LEAST_SHIFT + 1))
                    found.append(Mixture(kind, number, (Heard(number, shift),)))
                elif len(videos) > 1:
                    shift = 0 if rng.random() < 0.5 else int(rng.integers(tracks[other].frames))
                    level = float(np.clip(track.rms / max(tracks[other].rms, 1e-4), 0.1, 10))
                    if kind == "swapped":
                        found.append(Mixture(kind, number, (Heard(other, shift, round(level, 4)),)))
                        continue
                    level *= 10 ** (rng.uniform(-MIX_DB, MIX_DB) / 20)
                    heard = Heard(number, 0, 0.7), Heard(other, shift, round(0.7 * level, 4))
                    found.append(Mixture(kind, number, heard))
    return tuple(found)


def loudness_ap(folder: Path, split: str) -> float:
    """Average precision of a split by the loudness of each frame; NaN where no frame has label 1."""
    clips = TrackClips([folder], split)
    scores, positive = [], []
    for i in range(len(clips)):
        clip = clips[i]
        known_T = clip.labels >= 0
        scores.append(frame_loudness(clip)[known_T])
        positive.append(clip.labels[known_T] == 1)
    return average_precision(np.concatenate(scores), np.concatenate(positive))


def frame_loudness(clip: TrackClip) -> NDArray[np.float64]:
    """[T] mean square of the waveform in each frame."""
    return (clip.waveform.reshape(len(clip), -1).astype(np.float64) ** 2).mean(axis=1)


# --- scenes as videos -----------------------------------------------------------------------------------------------


def write_scenes(out: Path, cfg: TracksConfig, on_video: Callable[[int, int], None]) -> int:
    """Writes synthetic scenes as `out`/SPLIT/NAME.mp4 and `out`/SPLIT.csv, as AVA has them; returns how many.

    Raises:
        UserError: `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a new folder")
    with atomic_path(out) as folder:
        folder.mkdir()
        rows: dict[str, list[list[str]]] = {}
        for number in range(cfg.scenes):
            size = cfg.face_size + cfg.face_size % 2
            scene = make_scene(number, cfg.seed, cfg.seconds, size, cfg.max_faces, cfg.symmetry, cfg.time_reversed)
            split = scene_split(number, cfg)
            faces = len(scene.faces_FTHW)
            with video_file(folder / split / f"{scene.name}.mp4", faces * size, size) as file:
                for frame, audio in zip(scene_frames(scene), scene.waveform_S.reshape(-1, FRAME_SAMPLES), strict=True):
                    file.add(frame, audio)
            rows.setdefault(split, []).extend(scene_rows(scene))
            on_video(number + 1, cfg.scenes)
        for split, lines in rows.items():
            with (folder / f"{split}.csv").open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(lines)
    return cfg.scenes
