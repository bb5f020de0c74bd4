"""The Ray engine writes what the plain one writes; it needs the extra avpretrain[ray]."""

from __future__ import annotations

from pathlib import Path

import pytest

from avpretrain.data.write.shards import ShardConfig, make_shards
from avpretrain.data.write.transcode import TranscodeConfig
from avpretrain.data.write.workers import Outcome
from tests.data.write.test_workers import act
from tests.support.media_files import write_media

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'avpretrain[ray]')")


@pytest.fixture(scope="module")
def cluster() -> object:
    ray.init(num_cpus=2, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_ray_writes_the_same_shards(cluster: object, tmp_path: Path) -> None:
    for i in range(6):
        write_media(tmp_path / f"src/{i}.mp4", 1.0 + i % 2)
    (tmp_path / "src/broken.mp4").write_bytes(b"nothing")
    clips = TranscodeConfig(clip_seconds=1.0)
    plain, on_ray = tmp_path / "plain/set", tmp_path / "ray/set"
    make_shards(tmp_path / "src", plain, ShardConfig(clips=clips, workers=2))
    report = make_shards(tmp_path / "src", on_ray, ShardConfig(clips=clips, engine="ray"))
    assert [done.path for done in report.skipped] == ["broken.mp4"]
    for path in plain.iterdir():
        assert (on_ray / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_crash_on_ray_takes_only_its_task(cluster: object) -> None:
    from avpretrain.data.write.ray_engine import run_on_ray

    outcomes = list(run_on_ray(act, ["a", "segfault", "b"], workers=0, timeout=300.0))
    assert sorted(outcomes, key=lambda o: o.task) == [
        Outcome("a", None),
        Outcome("b", None),
        Outcome("segfault", "crashed the decoder (SIGSEGV)"),
    ]
