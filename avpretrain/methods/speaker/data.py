"""Data sets of face tracks on disk: read at any place, checked, without torch.

A set is a folder with webdataset tars `SPLIT-000000.tar`, ... and `tracks.json`. A tar holds of each track
KEY.faces.npy (uint8 [T, H, W], grey), KEY.waveform.npy (int16 [T * 640], 16 kHz mono), KEY.labels.npy (int8 [T]: 1
speaking and audible, 0 not, -1 unlabelled) and KEY.json (video, track, start). `tracks.json` says where they lie, with
sums of their bytes. It also lists mixtures: a stored track's faces with other audio, put together when they are read.
T frames at 25 a second, H and W pixels, S = 640 T samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8, UInt8
from numpy.typing import NDArray

from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import map_file, read_json
from avpretrain.data.manifest import is_shard_name
from avpretrain.data.splits import chosen_splits
from avpretrain.methods.speaker.config import FPS, FRAME_SAMPLES

INDEX_NAME = "tracks.json"
FORMAT = 1
MAX_INDEX_BYTES = 1 << 30
"""Largest `tracks.json` that is written or read: about 300 bytes a track or mixture."""


@dataclass(frozen=True, slots=True)
class TrackClip:
    """A face over time, with the audio that is heard meanwhile."""

    faces: UInt8[np.ndarray, "t h w"]
    """Grey crops at 25 a second."""
    waveform: Float32[np.ndarray, " s"]
    """16 kHz mono in [-1, 1]: 640 samples a frame."""
    labels: Int8[np.ndarray, " t"]
    """1 speaking and audible, 0 not, -1 unlabelled."""
    video: str
    track: str
    """Name of the face, as the source has it; of a mixture, with what is heard."""
    start: float = 0.0
    """Seconds of the video before the first frame."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class StoredTrack:
    """Where a track lies; fields as in `tracks.json`."""

    video: str
    track: str
    start: float
    frames: int
    speaking: int
    """Frames with label 1."""
    unlabelled: int
    """Frames with label -1."""
    places: tuple[int, int, int]
    """Where the values of faces, waveform and labels begin in the tar."""
    crc32: tuple[int, int, int]
    """Of each of them."""
    rms: float
    """Root mean square of the waveform, in [0, 1]."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StoredTrack:
        """Reads and checks what `tracks.json` says.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        found = cls(
            video=_text(values["video"]),
            track=_text(values["track"]),
            start=float(values["start"]),
            frames=int(values["frames"]),
            speaking=int(values["speaking"]),
            unlabelled=int(values["unlabelled"]),
            places=_three(values["places"]),
            crc32=_three(values["crc32"]),
            rms=float(values["rms"]),
        )
        numbers = (found.speaking, found.unlabelled, *found.places, *found.crc32)
        if found.frames < 1 or min(numbers) < 0 or not math.isfinite(found.start) or not math.isfinite(found.rms):
            raise ValueError(found.track)
        return found


@dataclass(frozen=True, slots=True)
class Heard:
    """Audio of a stored track in a mixture."""

    of: int
    """Number of the track in its split."""
    shift: int = 0
    """Frames by which it is early; what is shifted out at one end comes in at the other."""
    gain: float = 1.0


@dataclass(frozen=True, slots=True)
class Mixture:
    """A stored track's faces with other audio. Its labels are the track's own where its own audio is heard in time;
    otherwise nobody who is seen speaks what is heard, and all labels that are known are 0."""

    kind: str
    """swapped, shifted or mixed."""
    of: int
    """Number of the track in its split."""
    heard: tuple[Heard, ...]

    @property
    def keeps_labels(self) -> bool:
        return any(heard.of == self.of and heard.shift == 0 for heard in self.heard)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Mixture:
        """Reads what `tracks.json` says.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        heard = tuple(Heard(int(h["of"]), int(h["shift"]), float(h["gain"])) for h in values["heard"])
        if not heard or not all(math.isfinite(h.gain) and h.gain >= 0 for h in heard):
            raise ValueError("heard")
        return cls(_text(values["kind"]), int(values["of"]), heard)


@dataclass(frozen=True, slots=True)
class TrackShard:
    """One tar file; fields as in `tracks.json`."""

    name: str
    sha256: str
    tracks: tuple[StoredTrack, ...]


@dataclass(frozen=True, slots=True)
class TrackSplit:
    """What `tracks.json` says of a split."""

    shards: tuple[TrackShard, ...]
    mixtures: tuple[Mixture, ...]

    @property
    def tracks(self) -> list[StoredTrack]:
        """Stored ones, in order: what mixtures count."""
        return [track for shard in self.shards for track in shard.tracks]

    @property
    def frames(self) -> int:
        """Of stored tracks and mixtures."""
        return sum(stored.frames for stored, _ in self.samples())

    @property
    def speaking(self) -> int:
        """Frames with label 1, of stored tracks and mixtures."""
        return sum(stored.speaking for stored, mixture in self.samples() if mixture is None or mixture.keeps_labels)

    @property
    def labelled(self) -> int:
        """Frames that have a label, of stored tracks and mixtures."""
        return sum(stored.frames - stored.unlabelled for stored, _ in self.samples())

    def samples(self) -> Iterator[tuple[StoredTrack, Mixture | None]]:
        """Stored tracks, then mixtures."""
        tracks = self.tracks
        yield from ((track, None) for track in tracks)
        yield from ((tracks[mixture.of], mixture) for mixture in self.mixtures)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrackSplit:
        """Reads and checks what `tracks.json` says.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        shards = tuple(
            TrackShard(shard["name"], _text(shard["sha256"]), tuple(map(StoredTrack.from_json, shard["tracks"])))
            for shard in values["shards"]
        )
        mixtures = tuple(map(Mixture.from_json, values["mixtures"]))
        split = cls(shards, mixtures)
        count = len(split.tracks)
        numbers = [n for mixture in mixtures for n in (mixture.of, *(heard.of for heard in mixture.heard))]
        if not all(is_shard_name(shard.name) for shard in shards) or not all(0 <= n < count for n in numbers):
            raise ValueError("shards")
        return split

    def to_json(self) -> dict[str, Any]:
        """The reverse of `from_json`."""
        return asdict(self)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _three(values: Any) -> tuple[int, int, int]:
    first, second, third = map(int, values)
    return first, second, third


def is_track_set(path: str | Path) -> bool:
    """Whether a folder holds a data set of face tracks."""
    return (Path(path) / INDEX_NAME).is_file()


def identity(face_size: int, splits: dict[str, TrackSplit]) -> str:
    """Fingerprint of a set: equal = the same tracks, with the same mixtures."""
    told = {
        name: [[track.track, track.frames, track.crc32] for track in split.tracks]
        + [asdict(mixture) for mixture in split.mixtures]
        for name, split in splits.items()
    }
    return hashlib.sha256(json.dumps([face_size, told], sort_keys=True).encode()).hexdigest()


class TrackIndex:
    """A set's `tracks.json`, checked.

    Raises:
        UserError: there is none, or it is damaged.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if self.root.is_dir() and not is_track_set(self.root):
            raise UserError(f"{self.root} holds no face tracks ({INDEX_NAME}); make some: avpretrain tracks SRC OUT")
        values = read_json(self.root / INDEX_NAME, "index of face tracks", MAX_INDEX_BYTES)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            there = values.get("format") if isinstance(values, dict) else None
            raise UserError(f"{self.root} has track format {there!r}, this version reads {FORMAT}; make the set again")
        self.values: dict[str, Any] = values
        try:
            self.fingerprint, self.face_size = _text(values["fingerprint"]), int(values["face_size"])
            self.margin = float(values["margin"])
            self.splits = {str(name): TrackSplit.from_json(found) for name, found in values["splits"].items()}
            if not 1 <= self.face_size <= 4096 or not 0 <= self.margin <= 2:
                raise ValueError("face_size or margin")
        except (KeyError, TypeError, ValueError, AttributeError):
            path = self.root / INDEX_NAME
            raise UserError(f"{path} is damaged; make the set again, or fetch it again") from None


class TrackClips:
    """The tracks of a split of one set or several, by number: stored ones and mixtures.

    Safe to copy to other processes: files are opened where they are read.

    Args:
        folders: as `avpretrain tracks` writes them.
        split: name of one, 'train', 'val' or 'test' for what is for that, or 'all'.

    Raises:
        UserError: a set is damaged or has no such split.
        UsageError: the sets' faces differ in size or margin.
    """

    def __init__(self, folders: Sequence[str | Path], split: str = "train") -> None:
        if not folders:
            raise UsageError("no face tracks: name a folder that avpretrain tracks wrote")
        self.split = split
        self.sets = [TrackIndex(folder) for folder in folders]
        self.face_size, self.margin = self.sets[0].face_size, self.sets[0].margin
        self._splits: list[tuple[TrackIndex, TrackSplit, list[tuple[Path, StoredTrack]]]] = []
        self._samples: list[tuple[int, StoredTrack, Mixture | None, int]] = []
        """Of each: number of its split here, the track whose faces it has, the mixture, the track's number."""
        for index in self.sets:
            if index.face_size != self.face_size:
                sizes = f"{self.face_size} and {index.face_size} pixels"
                raise UsageError(f"{self.sets[0].root} and {index.root} hold faces of {sizes}; make one of them again")
            if index.margin != self.margin:
                raise UsageError(
                    f"{self.sets[0].root} and {index.root} hold faces with margins of {self.margin:g} and "
                    f"{index.margin:g}; make one of them again with the other's --margin"
                )
            names = chosen_splits(split, index.splits)
            if not names:
                raise UserError(f"{index.root} has no split '{split}'; it has: {', '.join(index.splits)}")
            for name in names:
                found = index.splits[name]
                stored = [(index.root / shard.name, track) for shard in found.shards for track in shard.tracks]
                number = len(self._splits)
                self._splits.append((index, found, stored))
                self._samples += [(number, track, None, i) for i, (_, track) in enumerate(stored)]
                self._samples += [(number, stored[m.of][1], m, m.of) for m in found.mixtures]
        self.frames = [stored.frames for _, stored, _, _ in self._samples]
        """Frames of each track."""
        self._maps: dict[Path, mmap.mmap] = {}
        self._checked: set[tuple[Path, int]] = set()

    def __len__(self) -> int:
        return len(self._samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_checked": set()}

    @property
    def fingerprint(self) -> str:
        """Equal = the same tracks of all splits."""
        return "+".join(index.fingerprint for index in self.sets)

    @property
    def speaking(self) -> int:
        """Frames with label 1."""
        return sum(split.speaking for _, split, _ in self._splits)

    @property
    def labelled(self) -> int:
        """Frames that have a label."""
        return sum(split.labelled for _, split, _ in self._splits)

    def key(self, number: int) -> str:
        """Name of a track, with what is heard in a mixture."""
        place, stored, mixture, _ = self._samples[number]
        if mixture is None:
            return stored.track
        tracks = self._splits[place][2]
        heard = ",".join(
            f"{'own' if h.of == mixture.of else tracks[h.of][1].track}{f'{h.shift:+d}' if h.shift else ''}"
            for h in mixture.heard
        )
        return f"{stored.track}|{mixture.kind}|{heard}"

    def kind(self, number: int) -> str:
        """stored, swapped, shifted or mixed."""
        mixture = self._samples[number][2]
        return "stored" if mixture is None else mixture.kind

    def place(self, number: int) -> tuple[str, str, float, int]:
        """Video, track, seconds before its first frame, and frames; mixtures have those of their faces."""
        stored = self._samples[number][1]
        return stored.video, stored.track, stored.start, stored.frames

    def __getitem__(self, number: int) -> TrackClip:
        """A whole track."""
        return self.read(number)

    def read(self, number: int, start: int = 0, count: int | None = None) -> TrackClip:
        """`count` frames from frame `start` of a track on; without it, all that follow.

        Raises:
            IndexError: there are not so many, or no such track.
            UserError: a shard is missing or damaged.
        """
        place, stored, mixture, own = self._samples[number]
        end = stored.frames if count is None else start + count
        if not 0 <= start <= end <= stored.frames:
            raise IndexError(f"frames {start} to {end} of {stored.frames}")
        faces_THW, own_S, labels_T = self._stored(place, own)
        faces_THW, labels_T = faces_THW[start:end].copy(), labels_T[start:end].copy()
        if mixture is None:
            waveform_S = own_S[start * FRAME_SAMPLES : end * FRAME_SAMPLES] / np.float32(32768)
        else:
            waveform_S = np.zeros((end - start) * FRAME_SAMPLES, np.float32)
            for heard in mixture.heard:
                other_S = self._stored(place, heard.of)[1]
                at_S = np.arange((start + heard.shift) * FRAME_SAMPLES, (end + heard.shift) * FRAME_SAMPLES)
                waveform_S += other_S[at_S % len(other_S)] * np.float32(heard.gain / 32768)
            np.clip(waveform_S, -1, 1, out=waveform_S)
            if not mixture.keeps_labels:
                labels_T[labels_T == 1] = 0
        seconds = stored.start + start / FPS
        return TrackClip(faces_THW, waveform_S, labels_T, stored.video, self.key(number), seconds)

    def _stored(self, place: int, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.int8]]:
        """Views of a stored track's values, looked through when they are first read."""
        path, track = self._splits[place][2][number]
        size, frames = self.face_size, track.frames
        data = self._map(path)
        dtypes, counts = ("u1", "<i2", "i1"), (frames * size * size, frames * FRAME_SAMPLES, frames)
        arrays = []
        for dtype, count, offset in zip(dtypes, counts, track.places, strict=True):
            if offset + count * np.dtype(dtype).itemsize > len(data):
                raise UserError(f"{path} is cut short; make the set again, or fetch the shard again")
            arrays.append(np.frombuffer(data, dtype, count, offset))
        if (path, number) not in self._checked:
            if any(zlib.crc32(array.data) != crc for array, crc in zip(arrays, track.crc32, strict=True)):
                raise UserError(
                    f"track {track.track} in {path} is damaged; make the set again, or fetch the shard again"
                )
            self._checked.add((path, number))
        return arrays[0].reshape(frames, size, size), arrays[1], arrays[2]

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            self._maps[path] = map_file(path, "make the set again, or fetch the shard again")
        return self._maps[path]

    def describe(self) -> dict[str, Any]:
        """What run.json says; `clips` counts tracks."""
        facts = {
            "frames": sum(self.frames),
            "margin": self.margin,
            "labelled": self.labelled,
            "speaking": self.speaking,
        }
        return {"fingerprint": self.fingerprint, "clips": len(self), "split": self.split, **facts}
