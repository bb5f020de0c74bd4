"""A fault of the program, or of a library in an incompatible version, is never taken for a bad file."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from avpretrain.core.errors import PROGRAM_ERRORS, describe
from avpretrain.data import container, decode
from avpretrain.data.container import DecodeError, decoding, open_media, probe_media
from avpretrain.data.decode import decode_audio, decode_video
from tests.support.media_files import write_media

ROOT = Path(__file__).parents[2]
INCOMPATIBLE = """
import av
def open(file, mode="r", **options):
    raise TypeError("open() got an unexpected keyword argument 'newer'")
av.open = open
"""


def shards(videos: Path, out: Path, first_on_path: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(first_on_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "avpretrain", "shards", str(videos), str(out), "--workers", "1", "--clip-seconds", "0"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def skipped(out: Path) -> list[str]:
    with (out / "skipped.csv").open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_an_incompatible_library_stops_sharding_and_skips_no_file(tmp_path: Path) -> None:
    videos, out, patch = tmp_path / "videos", tmp_path / "set", tmp_path / "patch"
    patch.mkdir()
    videos.mkdir()
    (patch / "sitecustomize.py").write_text(INCOMPATIBLE)  # every Python process reads it, the workers too
    write_media(videos / "a.mp4", 1.0)
    (videos / "bad.mp4").write_bytes(b"no video")
    assert shards(videos, out, tmp_path).returncode == 0
    assert skipped(out) == ["bad.mp4"]
    before = (out / "manifest.arrow").read_bytes()

    write_media(videos / "b.mp4", 1.0)
    stopped = shards(videos, out, patch)
    assert stopped.returncode == 1
    line = stopped.stderr.strip().splitlines()[-1]
    assert line.startswith(f"avpretrain: {videos / 'b.mp4'}: TypeError: open() got an unexpected"), stopped.stderr
    assert "report it" in line
    assert "Traceback" not in stopped.stderr
    assert skipped(out) == ["bad.mp4"]
    assert (out / "manifest.arrow").read_bytes() == before

    assert shards(videos, out, tmp_path).returncode == 0
    assert skipped(out) == ["bad.mp4"]
    assert (out / "manifest.arrow").read_bytes() != before


@pytest.mark.parametrize("error", [*PROGRAM_ERRORS, ValueError, KeyError, IndexError, RuntimeError, ZeroDivisionError])
def test_what_our_own_lines_raise_is_no_damage(error: type[Exception]) -> None:
    with pytest.raises(error), decoding():
        raise error("ours")


def test_what_decoders_raise_on_data_is_damage() -> None:
    with pytest.raises(DecodeError, match="can't be opened"), open_media(b"no media" * 100):
        pass
    with pytest.raises(DecodeError):
        decode_audio(b"no audio" * 100, 16_000)
    for backend in ("pyav", "auto"):
        with pytest.raises(DecodeError):
            decode_video(b"no video" * 100, [0.0], backend=backend)
    with pytest.raises(DecodeError), decoding():  # a ValueError that is no av.FFmpegError
        av.AudioLayout("no such layout")
    with pytest.raises(DecodeError), decoding():
        av.VideoFrame(16, 16, "rgb24").reformat(1 << 70, 16)


@pytest.mark.parametrize("call", ["pyav", "decord", "sound"])
def test_a_call_that_a_library_does_not_know_passes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    data = write_media(tmp_path / "a.mp4", 1.0).read_bytes()
    if call == "sound":
        monkeypatch.setattr(decode.soundfile, "SoundFile", lambda file: None)
        with pytest.raises(TypeError):
            decode_audio(data, 16_000)
        return
    if call == "decord":
        decord = pytest.importorskip("decord")
        monkeypatch.setattr(decord, "VideoReader", lambda file: None)
    else:
        monkeypatch.setitem(container._OPEN, "no_such_option", 1)
    with pytest.raises(TypeError):
        decode_video(data, [0.0], backend=call)


def test_titles_in_unknown_encodings_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE****"
        stream = container.add_stream("ffv1", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame.reformat(format="yuv420p")), *stream.encode()])
    data = path.read_bytes()
    assert data.count(b"TITLE****") == 1
    path.write_bytes(data.replace(b"TITLE****", b"TITLE\xff\xfe\xe4\xf6"))
    assert probe_media(path).has_video
    assert decode_video(path.read_bytes(), [0.0], backend="pyav").shape == (1, 16, 16, 3)


class Broken(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        error = TypeError("open() got an unexpected keyword argument 'newer'")
        error.add_note("while decoding clip a (from a.mp4)")
        raise error


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_of_loader_processes_are_told_in_one_line(workers: int) -> None:
    context = "forkserver" if workers else None
    loader = DataLoader(Broken(), num_workers=workers, multiprocessing_context=context, generator=torch.Generator())
    with pytest.raises(TypeError) as caught:
        next(iter(loader))
    line = "TypeError: open() got an unexpected keyword argument 'newer'; while decoding clip a (from a.mp4)"
    assert describe(caught.value) == line
