"""The clips of one or several sharded data sets as one list, read by offset, checked, and cut to what a model sees.

T frames, H height, W width, S waveform samples.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avpretrain.config.model import InputConfig
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.container import DecodeError
from avpretrain.data.decode import decode_audio, decode_video
from avpretrain.data.manifest import Clip, Manifest, Shard
from avpretrain.data.read.storage import REQUEST_TIMEOUT, StorageError, Store, open_store
from avpretrain.data.splits import chosen_splits

__all__ = ["ClipSet", "Encoded", "Media", "Modality", "Sample", "check_media", "decode_window"]

Modality = Literal["audio", "video", "both"]

ONE_READ_GAP = 1 << 16
"""Video and audio of a clip are adjacent in the tar; up to this many bytes apart they come by one request."""


WORTH_RESIZING = 1.25
"""Frames up to this many times larger than wanted go to the device as they are, which resizes them all at once."""


@dataclass(frozen=True, slots=True)
class Media:
    """The encoded members of a clip; empty where it has no video or no audio."""

    video: bytes
    audio: bytes


@dataclass(frozen=True, slots=True)
class Encoded:
    """A clip on its way to the decoder."""

    index: int
    """Its row."""
    clip: Clip
    media: Media


@dataclass(frozen=True, slots=True)
class Sample:
    """A clip's window, decoded."""

    waveform_S: np.ndarray
    """int16; empty = no audio."""
    frames_THWC: np.ndarray | None
    """uint8 RGB; none = no video."""
    index: int
    seed: int
    reasons: tuple[str, ...] = ()
    """Why the clips failed that this one replaces, one line each."""


class ClipSet:
    """Clips of one split of one or several data sets; rows run through the sets, their shards and the tars in order.

    Args:
        shards: folders or URLs written by `avpretrain shards`.
        split: a split's name, or several, or 'all'; each of several must be in one data set at least.
        cache_dir: keeps what is read from remote sets; empty = nothing but their manifests.
        request_timeout: seconds; see `storage.RemoteStore`.
        folders: where the manifests lie, if that is known.
        known_bad: `Manifest.bad` of each set, where they were checked already.

    Raises:
        UsageError: no data set was named.
        UserError: one cannot be read, or has no such split.
    """

    def __init__(
        self,
        shards: Sequence[str],
        split: str | Sequence[str] = "train",
        cache_dir: str = "",
        request_timeout: float = REQUEST_TIMEOUT,
        folders: Sequence[Path] = (),
        known_bad: Sequence[Mapping[int, str]] | None = None,
    ) -> None:
        if not shards:
            raise UsageError("no data set; name folders that avpretrain shards wrote")
        split = split if isinstance(split, str) else tuple(split)
        self.stores: list[Store] = [open_store(root, cache_dir, request_timeout) for root in shards]
        folders = tuple(folders) or tuple(store.manifest_folder() for store in self.stores)
        self._arguments = (tuple(shards), split, cache_dir, request_timeout, folders)
        known: Sequence[Mapping[int, str] | None] = known_bad or [None] * len(self.stores)
        self.manifests = [Manifest(folder, bad) for folder, bad in zip(folders, known, strict=True)]
        self._require_each(split)
        self._shards = [(part, shard) for part, m in enumerate(self.manifests) for shard in m.shards_of_split(split)]
        self.shard_sizes = tuple(self.manifests[part].shards[shard].clips for part, shard in self._shards)
        self.shard_starts = [0, *accumulate(self.shard_sizes)]

    def _require_each(self, split: str | tuple[str, ...]) -> None:
        for name in () if isinstance(split, str) else split:
            if not any(chosen_splits(name, manifest.splits) for manifest in self.manifests):
                there = ", ".join(dict.fromkeys(name for manifest in self.manifests for name in manifest.splits))
                raise UserError(f"no data set has a split '{name}'; there are: {there}")

    @property
    def clips_by_split(self) -> dict[str, int]:
        """Clips of each split that is taken, by the splits' own names."""
        counts: dict[str, int] = {}
        for part, number in self._shards:
            shard = self.manifests[part].shards[number]
            counts[shard.split] = counts.get(shard.split, 0) + shard.clips
        return counts

    def __reduce__(self) -> tuple[type[ClipSet], tuple[Any, ...]]:
        # Loader processes map the manifest anew: the system keeps one copy of its pages for all of them. A remote one
        # is not fetched again: it might be another by now.
        return ClipSet, (*self._arguments, [manifest.bad for manifest in self.manifests])

    def __len__(self) -> int:
        return self.shard_starts[-1]

    @property
    def fingerprint(self) -> str:
        """Of the data set (all splits); of several: a hash of theirs, whatever their order."""
        prints = sorted(manifest.fingerprint for manifest in self.manifests)
        return prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest()

    @property
    def log_mel(self) -> tuple[float, float]:
        """Mean and standard deviation of the log-mel spectrogram at 128 bins and 16 kHz, as measured while sharding.

        Of several sets: pooled over their values; where a summary has no sums, each clip counts as many values as the
        mean clip of the others (or all alike).
        """
        stats = [m.info["log_mel"] for m in self.manifests if m.info["log_mel"]["clips"]]
        if not stats:
            raise UsageError(
                "no clip has audio, so there is no log-mel to measure; set model.input.audio_mean and _std"
            )
        values = [_measured_values(s) for s in stats]
        known = [(n, s["clips"]) for n, s in zip(values, stats, strict=True) if n]
        a_clip = sum(n for n, _ in known) / sum(clips for _, clips in known) if known else 1.0
        weights = [n or s["clips"] * a_clip for n, s in zip(values, stats, strict=True)]
        mean = sum(w * s["mean"] for w, s in zip(weights, stats, strict=True)) / sum(weights)
        square = sum(w * (s["std"] ** 2 + s["mean"] ** 2) for w, s in zip(weights, stats, strict=True)) / sum(weights)
        return mean, max(square - mean**2, 1e-12) ** 0.5

    def shard_of(self, index: int) -> tuple[Store, Shard]:
        """The shard that holds a row, and the store it lies in."""
        part, shard = self._shards[bisect_right(self.shard_starts, index) - 1]
        return self.stores[part], self.manifests[part].shards[shard]

    def clip(self, index: int) -> Clip:
        """The manifest's row of a clip.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} clips")
        chosen = bisect_right(self.shard_starts, index) - 1
        part, shard = self._shards[chosen]
        return self.manifests[part].clip(self.manifests[part].shard_starts[shard] + index - self.shard_starts[chosen])

    @property
    def bad(self) -> dict[int, str]:
        """Rows of the chosen split that are damaged in the manifest, and why; reading one raises a `StorageError`."""
        reasons: dict[int, str] = {}
        for start, (part, shard) in zip(self.shard_starts, self._shards, strict=False):
            manifest = self.manifests[part]
            first, stop = manifest.shard_starts[shard : shard + 2]
            reasons |= {start + row - first: why for row, why in manifest.bad.items() if first <= row < stop}
        return reasons

    def _reason(self, index: int) -> str | None:
        """Why a row is bad; none = it is not."""
        chosen = bisect_right(self.shard_starts, index) - 1
        part, shard = self._shards[chosen]
        manifest = self.manifests[part]
        return manifest.bad.get(manifest.shard_starts[shard] + index - self.shard_starts[chosen])

    def encoded(self, index: int) -> Encoded:
        """A clip's bytes, equal to those that were sharded.

        Raises:
            StorageError: they can't be read, or their checksum is wrong; the message names the shard.
        """
        clip = self.clip(index)
        store, shard = self.shard_of(index)
        if not (clip.video_length or clip.audio_length):
            reason = self._reason(index) or "it has neither audio nor video"
            raise StorageError(f"clip {clip.key} in {store.root}/{shard.name} is damaged in the manifest ({reason})")
        for last in (False, True):
            media = _fetch(store, shard.name, clip)
            try:
                check_media(clip, media, f"{store.root}/{shard.name}")
                return Encoded(index, clip, media)
            except StorageError:
                dropped = [store.forget(shard.name, offset) for offset in (clip.video_offset, clip.audio_offset)]
                if last or not any(dropped):  # else the copy was bad: what the server has may be good
                    raise
        raise AssertionError


def _measured_values(log_mel: dict[str, Any]) -> float:
    """How many values a summary's mean was taken over; 0 where it does not say."""
    sums = log_mel.get("sums", {})
    return float(sum(sums[split][1] for split in log_mel.get("splits", ()) if split in sums))


def check_media(clip: Clip, media: Media, shard: str) -> None:
    """Compares a clip's bytes with their checksum: native decoders get to see nothing that was not sharded.

    Raises:
        StorageError: they differ; the message names the shard.
    """
    digest = hashlib.sha256(media.video)
    digest.update(media.audio)
    if digest.hexdigest() != clip.sha256:
        raise StorageError(
            f"clip {clip.key} in {shard} is damaged (wrong checksum); avpretrain inspect --verify lists all that are"
        )


def decode_window(
    encoded: Encoded,
    cfg: InputConfig,
    seed: int,
    at: tuple[float, float] = (0.5, 0.5),
    short_side: int = 0,
    modality: Modality = "both",
) -> Sample:
    """Decodes the window of a clip that a model sees.

    Args:
        at: where the windows of audio and video lie in the room there is, from 0 (first) to 1 (last).
        short_side: pixels; frames much larger than this are made smaller, none larger; 0 = keep.

    Raises:
        DecodeError: the clip is damaged; the message names it.
    """
    clip, media = encoded.clip, encoded.media
    audio_start, video_start = window_starts(clip.duration, cfg, at)
    waveform = np.zeros(0, dtype=np.int16)
    frames = None
    try:
        if media.audio and modality != "video":
            whole = decode_audio(media.audio, cfg.sample_rate)
            count = window_samples(cfg)
            first = max(0, min(round(audio_start * cfg.sample_rate), len(whole) - count))
            waveform = whole[first : first + count]
        if media.video and modality != "audio":
            last = max(0.0, clip.duration - 1 / clip.fps if clip.fps else clip.duration)
            times = [min(video_start + (i + 0.5) / cfg.video_fps, last) for i in range(cfg.video_frames)]
            smaller = 0 < short_side * WORTH_RESIZING < min(clip.width, clip.height)
            frames = decode_video(media.video, times, short_side if smaller else 0)
    except DecodeError as error:
        raise DecodeError(f"clip {clip.key} (from {clip.source}): {error}") from None
    except Exception as error:
        error.add_note(f"while decoding clip {clip.key} (from {clip.source})")
        raise
    return Sample(waveform, frames, encoded.index, seed)


def window_samples(cfg: InputConfig) -> int:
    """Samples of waveform that fill the spectrogram."""
    return round(cfg.audio_seconds * cfg.sample_rate)


def window_starts(duration: float, cfg: InputConfig, at: tuple[float, float]) -> tuple[float, float]:
    """Seconds at which the windows of audio and video begin; the shorter one lies inside the other where it can."""
    audio_start = at[0] * max(0.0, duration - cfg.audio_seconds)
    audio_end = min(audio_start + cfg.audio_seconds, duration)
    room = max(0.0, duration - cfg.video_seconds)
    one, other = min(audio_start, room), min(max(0.0, audio_end - cfg.video_seconds), room)
    return audio_start, min(one, other) + at[1] * abs(one - other)


def _fetch(store: Store, shard: str, clip: Clip) -> Media:
    """Both members, by one request where they lie close to each other."""
    video = (clip.video_offset, clip.video_length)
    audio = (clip.audio_offset, clip.audio_length)
    if not (clip.video_length and clip.audio_length):
        only = store.read(shard, *(video if clip.video_length else audio))
        return Media(only, b"") if clip.video_length else Media(b"", only)
    start, end = min(video[0], audio[0]), max(sum(video), sum(audio))
    if end - start - video[1] - audio[1] > ONE_READ_GAP:
        return Media(store.read(shard, *video), store.read(shard, *audio))
    both = store.read(shard, start, end - start)
    return Media(*(both[o - start : o - start + n] for o, n in (video, audio)))
