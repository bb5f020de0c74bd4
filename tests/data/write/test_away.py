"""Errors that are not a file's fault: it is tried again, at once or by the next run, and never skipped for good."""

from __future__ import annotations

import csv
import errno
import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest

import avpretrain.data.write.shards as shards_module
from avpretrain.core.errors import UserError
from avpretrain.data.container import DecodeError, decoding
from avpretrain.data.write.parts import AwayError, Task, away, make_part
from avpretrain.data.write.shards import MAX_AWAY, Progress, ShardConfig, ShardReport, make_shards
from avpretrain.data.write.transcode import TranscodeConfig
from tests.data.write.test_shards_resume import contents
from tests.support.media_files import write_media


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write_media(tmp_path / "src" / name / f"{name}.mp4", 1.0, size=(64, 48))
    return tmp_path / "src"


def shard(src: Path, out: Path, then: Callable[[], object] = lambda: None, workers: int = 2) -> ShardReport:
    """Shards a folder; `then` is called when the files are listed and none is read yet."""
    called: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        if not called:
            then()
        called.append(progress)

    cfg = ShardConfig(clips=TranscodeConfig(clip_seconds=0.0, short_side=0), workers=workers)
    return make_shards(src, out, cfg, on_progress)


def listed(out: Path, table: str) -> list[str]:
    with (out / table).open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def test_a_file_that_is_gone_is_tried_again_by_the_next_run(source: Path, tmp_path: Path) -> None:
    file, elsewhere, out = source / "b" / "b.mp4", tmp_path / "b.mp4", tmp_path / "out"
    report = shard(source, out, lambda: file.rename(elsewhere))
    (gone,) = report.away
    assert (gone.path, gone.reason) == ("b/b.mp4", "can't be read: No such file or directory")
    assert report.manifest.info["clips"] == 2
    assert report.skipped == []
    assert listed(out, "sources.csv") == ["a/a.mp4", "c/c.mp4"], "not done with it"
    assert listed(out, "skipped.csv") == ["b/b.mp4"]
    elsewhere.rename(file)
    again = shard(source, out)
    assert (again.added, again.away, again.manifest.info["clips"]) == (1, [], 3)
    assert listed(out, "skipped.csv") == []


def test_a_source_that_is_away_for_a_moment_is_waited_for(source: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"

    def away_and_back() -> None:
        (source / "b").rename(moved)
        threading.Thread(target=lambda: (time.sleep(2), moved.rename(source / "b"))).start()

    report = shard(source, tmp_path / "out", away_and_back)
    assert report.away == []
    shard(source, tmp_path / "straight")
    assert {**contents(tmp_path / "out"), "dataset.json": ""} == {**contents(tmp_path / "straight"), "dataset.json": ""}


def test_a_source_that_stays_away_stops_the_run_and_loses_nothing(source: Path, tmp_path: Path) -> None:
    moved, out = tmp_path / "moved", tmp_path / "set"
    with pytest.raises(UserError, match=r"source folder .*src can't be read any more: No such file"):
        shard(source, out, lambda: source.rename(moved))
    moved.rename(source)
    shard(source, out)
    shard(source, tmp_path / "straight" / "set")
    assert contents(out) == contents(tmp_path / "straight" / "set")


def test_many_files_in_a_row_that_can_not_be_read_stop_the_run(source: Path, tmp_path: Path) -> None:
    for i in range(MAX_AWAY + 1):
        (source / f"{i}.mp4").write_bytes((source / "a" / "a.mp4").read_bytes())

    def unmount() -> None:
        for path in source.rglob("*.mp4"):
            path.unlink()

    with pytest.raises(UserError, match=rf"{MAX_AWAY} files in a row could not be read, .* No such file"):
        shard(source, tmp_path / "out", unmount, workers=MAX_AWAY)
    write_media(source / "a" / "a.mp4", 1.0, size=(64, 48))
    assert shard(source, tmp_path / "out").manifest.info["clips"] == 1


class Failing(io.BytesIO):
    """A file on a disk, or a server, that fails after its first read."""

    def __init__(self, data: bytes, error: BaseException) -> None:
        super().__init__(data)
        self.error, self.reads = error, 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > 1:
            raise self.error
        return super().read(min(1000, size or 1000))


def refused(error: BaseException, data: bytes) -> AwayError | None:
    """What is made of an error that a file raises while PyAV reads it."""
    with pytest.raises(DecodeError) as caught, decoding(), av.open(Failing(data, error)) as container:
        for packet in container.demux():
            packet.decode()
    return away(caught.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.ENOMEM])
def test_errors_of_disk_and_server_are_told_from_the_file_s(source: Path, number: int) -> None:
    data = (source / "a" / "a.mp4").read_bytes()
    found = refused(OSError(number, os.strerror(number)), data)
    assert found is not None
    assert str(found) == f"can't be read: {os.strerror(number)}"
    assert found.moment == (number not in (errno.EACCES, errno.ENOMEM))
    assert str(refused(MemoryError(), data)) == "needs more memory than there is"
    assert refused(OSError(errno.EINVAL, "Invalid argument"), data) is None


def test_damage_is_the_file_s_fault_whatever_ffmpeg_calls_it() -> None:
    for code in (errno.EIO, errno.ENOMEM, errno.ENOENT):
        with pytest.raises(DecodeError) as caught, decoding():
            raise av.error.classes[code](code, "as FFmpeg says")
        assert away(caught.value) is None


def killed_once(task: Task, beat: Callable[[], None]) -> None:
    """Dies as by the kernel's hand at its first try of b.mp4, and at each of c.mp4."""
    mark = task.part.parent.parent.parent / "killed-once"
    if task.item.path == "c/c.mp4" or (task.item.path == "b/b.mp4" and not mark.exists()):
        if task.item.path == "b/b.mp4":
            mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    make_part(task, beat)


def test_a_worker_killed_for_memory_costs_no_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "make_part", killed_once)
        report = shard(source, tmp_path / "out")
    (gone,) = report.away
    assert gone.path == "c/c.mp4" and "worker killed twice" in gone.reason
    assert listed(tmp_path / "out", "sources.csv") == ["a/a.mp4", "b/b.mp4"]
    assert shard(source, tmp_path / "out").manifest.info["clips"] == 3
