"""Writing data sets of face tracks: parts, one a video, which join into tars and their index."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path, read_json, write_json
from avpretrain.core.provenance import versions
from avpretrain.data.text.tokens import member_bytes
from avpretrain.methods.speaker.config import FPS, FRAME_SAMPLES, SAMPLE_RATE
from avpretrain.methods.speaker.data import (
    FORMAT,
    INDEX_NAME,
    MAX_INDEX_BYTES,
    Mixture,
    StoredTrack,
    TrackClip,
    TrackIndex,
    TrackShard,
    TrackSplit,
    identity,
)

SHARD_BYTES = 256 << 20
END_OF_TAR = b"\0" * 1024


@dataclass(frozen=True)
class Part:
    """The tracks of one video, in a file of tar members without an end."""

    split: str
    tracks: tuple[StoredTrack, ...]
    key: str
    """What it was made from."""
    skipped: str = ""
    """Why there is no track, where that is so."""


def write_part(path: Path, split: str, clips: Iterable[TrackClip], key: str) -> Part:
    """Writes the tracks of one video to `path`, and what they are to `path`.json."""
    tracks = []
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for clip in clips:
            tracks.append(_write_track(file, clip))
    return _tell(path, Part(split, tuple(tracks), key))


def write_skipped(path: Path, split: str, key: str, why: str) -> Part:
    """Notes that a video gives no tracks."""
    return _tell(path, Part(split, (), key, why))


def _tell(path: Path, part: Part) -> Part:
    write_json(path.with_name(f"{path.name}.json"), asdict(part))
    return part


def read_part(path: Path, key: str) -> Part | None:
    """A part that was written before from the same; none if there is none."""
    try:
        values = read_json(path.with_name(f"{path.name}.json"), "part")
        if values["key"] != key:
            return None
        tracks = tuple(map(StoredTrack.from_json, values["tracks"]))
        part = Part(values["split"], tracks, key, values["skipped"])
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return part if not tracks or path.is_file() else None


def _write_track(file: Any, clip: TrackClip) -> StoredTrack:
    """Appends a track's members to a file; their names are numbers in it."""
    frames = len(clip.labels)
    if not len(clip.faces) == frames == len(clip.waveform) / FRAME_SAMPLES:
        lengths = f"{len(clip.faces)} faces, {len(clip.waveform)} samples, {frames} labels"
        raise ValueError(f"track {clip.track} has {lengths}")
    pcm_S = np.clip(np.rint(clip.waveform * 32768), -32768, 32767).astype("<i2")
    values = {"faces": np.ascontiguousarray(clip.faces), "waveform": pcm_S, "labels": clip.labels.astype(np.int8)}
    stem = hashlib.sha256(f"{clip.video} {clip.track} {clip.start}".encode()).hexdigest()[:20]
    places = []
    for name, array in values.items():
        data, start = member_bytes(array, f"{stem}.{name}.npy")
        places.append(file.tell() + start)
        file.write(data)
    about = json.dumps({"video": clip.video, "track": clip.track, "start": clip.start}).encode()
    info = tarfile.TarInfo(f"{stem}.json")
    info.size = len(about)
    file.write(info.tobuf(tarfile.USTAR_FORMAT) + about + b"\0" * (-len(about) % tarfile.BLOCKSIZE))
    return StoredTrack(
        video=clip.video,
        track=clip.track,
        start=clip.start,
        frames=frames,
        speaking=int((clip.labels == 1).sum()),
        unlabelled=int((clip.labels == -1).sum()),
        places=(places[0], places[1], places[2]),
        crc32=tuple(zlib.crc32(array.data) for array in values.values()),  # type: ignore[arg-type]
        rms=float(np.sqrt(np.mean((pcm_S / 32768.0) ** 2))),
    )


def join(
    out: Path,
    parts: Sequence[tuple[Path, Part]],
    face_size: int,
    margin: float,
    mix: Callable[[str, list[StoredTrack]], tuple[Mixture, ...]],
    made_from: dict[str, Any],
) -> TrackIndex:
    """Writes the data set `out`, whole or not at all.

    Args:
        out: its folder.
        parts: files of parts with what they hold, in order.
        face_size: pixels of a face.
        margin: by which boxes were widened.
        mix: gives the mixtures of a split from its name and its tracks.
        made_from: what `tracks.json` says of the source.

    Raises:
        UserError: no part holds a track, or there are too many.
    """
    splits: dict[str, list[tuple[Path, Part]]] = {}
    for path, part in parts:
        if part.tracks:
            splits.setdefault(part.split, []).append((path, part))
    if not splits:
        raise UserError("no video gives a face track, so there is nothing to write")
    with atomic_path(out) as folder:
        folder.mkdir()
        written = {}
        for name, own in sorted(splits.items()):
            shards = _write_shards(folder, name, own)
            tracks = [track for shard in shards for track in shard.tracks]
            written[name] = TrackSplit(shards, mix(name, tracks))
        index = {
            "format": FORMAT,
            "face_size": face_size,
            "margin": margin,
            "fps": FPS,
            "sample_rate": SAMPLE_RATE,
            "fingerprint": identity(face_size, written),
            "splits": {name: split.to_json() for name, split in written.items()},
            "made_from": made_from,
            "created_with": versions(),
        }
        text = json.dumps(index) + "\n"
        if len(text) > MAX_INDEX_BYTES:
            raise UserError(
                f"{INDEX_NAME} would have {len(text):,} bytes, more than the {MAX_INDEX_BYTES:,} that are read; make "
                "several sets of fewer videos, or fewer --hard-negatives, and train on them together"
            )
        (folder / INDEX_NAME).write_text(text)
    return TrackIndex(out)


def _write_shards(folder: Path, split: str, parts: Sequence[tuple[Path, Part]]) -> tuple[TrackShard, ...]:
    shards: list[TrackShard] = []
    file, digest, tracks = None, hashlib.sha256(), list[StoredTrack]()

    def close() -> None:
        nonlocal file, tracks, digest
        if file is None:
            return
        file.write(END_OF_TAR)
        digest.update(END_OF_TAR)
        file.close()
        shards.append(TrackShard(Path(file.name).name, digest.hexdigest(), tuple(tracks)))
        file, digest, tracks = None, hashlib.sha256(), []

    for path, part in parts:
        if file is not None and file.tell() + path.stat().st_size > SHARD_BYTES:
            close()
        if file is None:
            file = (folder / f"{split}-{len(shards):06d}.tar").open("wb")
        before = file.tell()
        with path.open("rb") as source:
            while block := source.read(1 << 22):
                file.write(block)
                digest.update(block)
        for track in part.tracks:
            moved = tuple(before + place for place in track.places)
            tracks.append(StoredTrack(**{**asdict(track), "places": moved}))
    close()
    return tuple(shards)
