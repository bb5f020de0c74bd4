"""`data.mode stream` reads by the manifest what `random` reads, whatever the tars look like around it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from avpretrain.config.model import InputConfig
from avpretrain.config.schedules import Step
from avpretrain.config.train import DataConfig
from avpretrain.core.errors import UserError
from avpretrain.data.read.dataset import train_loader
from tests.support.tiny_datasets import Spec, make_dataset

INPUT = InputConfig(audio_frames=64, mels=32, video_frames=2, video_fps=2.0, video_size=16)
CLIPS = 12


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", [Spec(seconds=1.0) for _ in range(CLIPS)])


def epoch(root: Path, workers: int = 0) -> tuple[list[int], list[str]]:
    """Rows of an epoch's clips, ascending, and why others were left out."""
    cfg = DataConfig(shards=(str(root),), mode="stream", num_workers=workers)
    with train_loader(cfg, INPUT, 0, [Step(0, 0, CLIPS, 1e-3)]) as batches:
        (batch,) = batches
    return sorted(batch.index_B.tolist()), list(batch.reasons)


def _members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(m.name, (tar.extractfile(m) or io.BytesIO()).read()) for m in tar.getmembers()]


def _doubled(path: Path) -> None:
    """Every member stands there twice; the manifest knows the first ones."""
    members = _members(path)
    with tarfile.open(path, "w") as tar:
        for name, data in members * 2:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _with_links(path: Path) -> None:
    """Links that lead out of the folder follow the members."""
    members = _members(path)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"evil{kind!r}.mp4")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)


def _linked(path: Path) -> None:
    """The shard lies elsewhere, as sets put together by links do."""
    elsewhere = path.parent.parent / "elsewhere.tar"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def _gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", [_doubled, _with_links, _linked], ids=lambda change: change.__name__)
def test_what_stands_around_the_clips_changes_nothing(
    good: Path, tmp_path: Path, change: Callable[[Path], None], workers: int
) -> None:
    root = shutil.copytree(good, tmp_path / "set")
    change(root / "train-000001.tar")
    found = epoch(root, workers)
    assert found == epoch(good, workers)
    assert found[1] == [] and (workers or found[0] == list(range(CLIPS)))


@pytest.mark.parametrize("change", [_cut, _gone], ids=lambda change: change.__name__)
def test_what_is_lost_of_a_shard_is_counted_and_named(
    good: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    root = shutil.copytree(good, tmp_path / "set")
    change(root / "train-000001.tar")
    rows, reasons = epoch(root)
    lost = CLIPS - len(set(rows))
    assert 1 <= lost <= 4, "of one shard alone"
    assert len(reasons) >= lost and all("train-000001" in reason for reason in reasons), reasons


def test_a_pipe_in_the_place_of_every_shard(good: Path, tmp_path: Path) -> None:
    root = shutil.copytree(good, tmp_path / "set")
    for path in root.glob("*.tar"):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(UserError, match=r"clips in a row.*is a pipe"):
        epoch(root)
