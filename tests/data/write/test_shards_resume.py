"""Killed at any moment and started again, sharding ends with the very bytes of a run that nobody disturbed."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from avpretrain.data.verify import verify
from tests.support.forks import Forker, forker
from tests.support.media_files import write_media

KILLS = 20


OPTIONS = ["--clip-seconds", "1", "--shard-clips", "7", "--workers", "2", "--short-side", "0"]


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    for i in range(24):
        write_media(root / ("train" if i % 4 else "test") / f"{i}.mp4", 1.0 + 2 * (i % 2), size=(160, 120))
    (root / "broken.mp4").write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with forker(tmp_path_factory.mktemp("logs"), "avpretrain.cli.shards") as forks:
        yield forks


@pytest.fixture(scope="module")
def straight(source: Path, forks: Forker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("straight") / "set"
    forks.run("shards", source, out, *OPTIONS)
    return out


@pytest.mark.slow
def test_killed_twenty_times_it_ends_the_same(source: Path, straight: Path, forks: Forker, tmp_path: Path) -> None:
    """Kills after a random number of steps of the work, whatever the speed of the machine."""
    rng = random.Random(0)
    kills = ends = 0
    while kills < KILLS:
        killed = tmp_path / f"{ends}/set"
        if forks.start("shards", source, killed, *OPTIONS).kill_after(killed, rng.randint(0, 20)):
            kills += 1
        else:  # it came to its end in spite of the kills before: compare, and begin anew
            assert contents(killed) == contents(straight)
            ends += 1
    forks.run("shards", source, killed, *OPTIONS)
    assert contents(killed) == contents(straight)
    assert verify(killed) == []


@pytest.mark.parametrize("stage", ["parts", "shards", "commit"])
def test_killed_at_each_stage(source: Path, straight: Path, forks: Forker, tmp_path: Path, stage: str) -> None:
    """Waits until the stage's first file appears, then kills."""
    killed = tmp_path / "set"
    process = forks.start("shards", source, killed, *OPTIONS)
    watched = {"parts": ".work/parts/*/*.json", "shards": "*.tar", "commit": ".work/commit*/*"}[stage]
    while process.poll() is None and not any(killed.glob(watched)):
        time.sleep(0.001)
    process.kill()
    forks.run("shards", source, killed, *OPTIONS)
    assert contents(killed) == contents(straight)


def test_a_commit_cut_short_is_completed(source: Path, straight: Path, forks: Forker, tmp_path: Path) -> None:
    """The state between the moves of a commit: some files in place, some not."""
    killed = tmp_path / "set"
    forks.run("shards", source, killed, *OPTIONS)
    for moved in (["dataset.json"], ["manifest.arrow", "sources.csv"], ["skipped.csv", "missing.csv", "dataset.json"]):
        (killed / ".work/commit").mkdir(parents=True)
        (killed / ".work/created_with.json").write_text('{"half": 1}')
        for name in moved:
            (killed / name).rename(killed / ".work/commit" / name)
        forks.run("shards", source, killed, *OPTIONS)
        assert contents(killed) == contents(straight)
