"""Tiny sharded data sets, written from scratch: frames and sound say which clip they belong to."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

from avpretrain.data.manifest import FORMAT, Clip, write_manifest
from avpretrain.data.place import DATASET_NAME, MANIFEST_NAME

SAMPLE_RATE = 16_000
FPS = 8


@dataclass(frozen=True)
class Spec:
    """What one clip is made of."""

    seconds: float = 2.0
    split: str = "train"
    label: str = "a"
    sound: bool = True
    picture: bool = True
    size: tuple[int, int] = (48, 64)
    """Height, width."""
    pitch: int | None = None
    """Sounds like the clip of this index; none = its own."""
    labels: tuple[tuple[str, str | list[str]], ...] = ()
    """Labels besides `class`."""

    @property
    def all_labels(self) -> dict[str, str | list[str]]:
        return {"class": self.label, **dict(self.labels)}


def tone(index: int, seconds: float) -> np.ndarray:
    """int16: a tone of 200 + 10 * index Hz, with a little noise."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(index).normal(0, 0.01, len(t))
    return ((0.3 * np.sin(2 * np.pi * (200 + 10 * index) * t) + noise) * 32767).astype(np.int16)


def picture(index: int, seconds: float, size: tuple[int, int]) -> np.ndarray:
    """uint8 [T, H, W, 3]: a grey that tells the clip, with a white bar that moves with time."""
    frames = np.full((max(1, round(seconds * FPS)), *size, 3), 20 + (index * 7) % 120, dtype=np.uint8)
    for t, frame in enumerate(frames):
        frame[:, (4 * t) % size[1] : (4 * t) % size[1] + 4] = 250
    return frames


def mp4(frames: np.ndarray, fps: int = FPS) -> bytes:
    """H.264 in mp4, a key frame every four frames."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "10", "g": "4", "bf": "0", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def flac(wave: np.ndarray) -> bytes:
    """16-bit FLAC, mono, 16 kHz."""
    out = io.BytesIO()
    soundfile.write(out, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def make_dataset(root: Path, specs: Sequence[Spec], per_shard: int = 4, name: str = "tiny") -> Path:
    """Writes shards of at most `per_shard` clips, the manifest and the summary; splits must come in runs."""
    root.mkdir(parents=True, exist_ok=True)
    clips: list[Clip] = []
    shards: list[dict[str, object]] = []
    for split in dict.fromkeys(spec.split for spec in specs):
        numbered = [(i, spec) for i, spec in enumerate(specs) if spec.split == split]
        for number, start in enumerate(range(0, len(numbered), per_shard)):
            chunk = numbered[start : start + per_shard]
            path = root / f"{split}-{number:06d}.tar"
            clips += _write_shard(path, len(shards), chunk)
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            shards.append(
                {"name": path.name, "split": split, "clips": len(chunk), "bytes": len(data), "sha256": digest}
            )
    write_manifest(root / MANIFEST_NAME, clips)
    summary = {
        "format": FORMAT,
        "name": name,
        "clips": len(clips),
        "hours": sum(clip.duration for clip in clips) / 3600,
        "bytes": sum(path.stat().st_size for path in root.glob("*.tar")),
        "shards": shards,
        "fingerprint": hashlib.sha256("".join(sorted(clip.sha256 for clip in clips)).encode()).hexdigest(),
        "log_mel": {"mean": -8.0, "std": 4.0, "clips": sum(spec.sound for spec in specs)},
        "labels": {"class": sorted({spec.label for spec in specs})},
        "created_with": {},
    }
    (root / DATASET_NAME).write_text(json.dumps(summary))
    return root


def _write_shard(path: Path, shard: int, numbered: Sequence[tuple[int, Spec]]) -> list[Clip]:
    members: list[tuple[str, bytes]] = []
    for i, spec in numbered:
        labels = json.dumps(spec.all_labels)
        if spec.picture:
            members.append((f"clip{i:05d}.mp4", mp4(picture(i, spec.seconds, spec.size))))
        if spec.sound:
            members.append((f"clip{i:05d}.flac", flac(tone(i if spec.pitch is None else spec.pitch, spec.seconds))))
        members.append((f"clip{i:05d}.json", labels.encode()))
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        offsets = {info.name: (info.offset_data, info.size) for info in tar.getmembers()}
    contents = dict(members)
    return [_row(shard, i, spec, offsets, contents) for i, spec in numbered]


def _row(shard: int, i: int, spec: Spec, offsets: dict[str, tuple[int, int]], contents: dict[str, bytes]) -> Clip:
    key = f"clip{i:05d}"
    video, audio = offsets.get(f"{key}.mp4", (0, 0)), offsets.get(f"{key}.flac", (0, 0))
    media = contents.get(f"{key}.mp4", b"") + contents.get(f"{key}.flac", b"")
    return Clip(
        key=key,
        shard=shard,
        video_ext="mp4" if spec.picture else "",
        video_offset=video[0],
        video_length=video[1],
        audio_ext="flac" if spec.sound else "",
        audio_offset=audio[0],
        audio_length=audio[1],
        duration=spec.seconds,
        fps=float(FPS) if spec.picture else 0.0,
        width=spec.size[1] if spec.picture else 0,
        height=spec.size[0] if spec.picture else 0,
        labels=json.dumps(spec.all_labels),
        source=f"{key}.mp4",
        start=0.0,
        license="CC0-1.0",
        sha256=hashlib.sha256(media).hexdigest(),
    )
