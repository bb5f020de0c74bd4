"""Decoded clips on disk, shared by loader processes, ranks and runs: a clip that has one window is decoded once.

T frames, H height, W width, S waveform samples.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.metadata
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avpretrain.config.model import InputConfig
from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path
from avpretrain.core.terminal import plain
from avpretrain.data.manifest import Clip
from avpretrain.data.read.clips import Sample, window_samples

HEADER = 6
"""Numbers of 8 bytes before the data: version, S, T, H, W (T = 0: no video), CRC-32 of these five and the data."""
VERSION = 2
DECODERS = "av", "decord", "soundfile"


class DecodedClips:
    """One file a clip, named by the clip's checksum and by all that decides what its window decodes to.

    What can't be kept later on, on a full disk, is said once and decoded each time.

    Args:
        folder: is made if need be.
        input: of the model.
        short_side: pixels, as `decode_window` takes it.

    Raises:
        UserError: the folder can't be made or written to.
    """

    def __init__(self, folder: Path, input: InputConfig, short_side: int) -> None:
        self.folder, self.full = folder, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise UserError(
                f"can't keep decoded clips in {folder}: {error.strerror or error}; give another data.decoded_dir, or "
                "leave it empty"
            ) from None
        window = (input.sample_rate, window_samples(input), input.video_fps, input.video_frames, short_side)
        self.settings = repr((VERSION, window, _decoders()))

    def read(self, clip: Clip, index: int) -> Sample | None:
        """What was kept of a clip, with seed 0; none = nothing, or a file that is damaged."""
        try:
            data = bytearray(self._path(clip).read_bytes())  # PyTorch wants memory that may be written
        except OSError:
            return None
        if len(data) < HEADER * 8:
            return None
        *numbers, checksum = np.frombuffer(data, "<i8", HEADER).tolist()
        version, samples, frames, height, width = numbers
        sizes = 2 * samples, frames * height * width * 3
        body = memoryview(data)[HEADER * 8 :]
        if version != VERSION or min(numbers) < 0 or sum(sizes) != len(body) or _checksum(numbers, body) != checksum:
            return None
        waveform_S = np.frombuffer(body, "<i2", samples)
        frames_THWC = np.frombuffer(body, np.uint8, offset=sizes[0]).reshape(frames, height, width, 3)
        return Sample(waveform_S, frames_THWC if frames else None, index, 0)

    def keep(self, clip: Clip, sample: Sample) -> None:
        """Writes a clip's file, whole or not at all."""
        if self.full:
            return
        frames = np.zeros((0, 0, 0, 3), np.uint8) if sample.frames_THWC is None else sample.frames_THWC
        body = sample.waveform_S.astype("<i2").tobytes() + frames.tobytes()
        numbers = [VERSION, len(sample.waveform_S), *frames.shape[:3]]
        try:
            with atomic_path(self._path(clip)) as temporary:
                temporary.write_bytes(np.array([*numbers, _checksum(numbers, body)], "<i8").tobytes() + body)
        except (OSError, UserError) as error:
            self.full = True
            why = f"{getattr(error, 'strerror', None) or error}; clips are decoded each time from here on"
            print(plain(f"avpretrain: can't keep decoded clips in {self.folder}: {why}"), file=sys.stderr)

    def _path(self, clip: Clip) -> Path:
        name = hashlib.sha256(f"{self.settings} {clip.duration!r} {clip.fps!r} {clip.sha256}".encode()).hexdigest()[:40]
        return self.folder / name[:2] / name


def _checksum(numbers: Sequence[int], body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(np.array(numbers, "<i8").tobytes()))


@functools.cache
def _decoders() -> tuple[str, ...]:
    """Versions of what decodes, as far as it is installed: another one may round otherwise."""
    versions = []
    for name in DECODERS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return tuple(versions)
