from __future__ import annotations

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from avpretrain.config.model import InputConfig
from avpretrain.config.schedules import Step
from avpretrain.config.train import DataConfig
from avpretrain.core.errors import UserError
from avpretrain.data.read import storage
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.read.dataset import train_loader
from avpretrain.data.read.storage import LocalStore, RemoteStore, StorageError, UnreachableError, open_store
from tests.support.servers import serving
from tests.support.tiny_datasets import Spec, make_dataset

INPUT = InputConfig(audio_frames=64, mels=32, video_frames=2, video_fps=2.0, video_size=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", [Spec(seconds=1.0) for _ in range(10)])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.001)


def rows_and_bytes(url: str, cache_dir: Path, mode: str = "random") -> list[tuple[int, str]]:
    cfg = DataConfig(shards=(url,), num_workers=0, cache_dir=str(cache_dir), mode=mode)  # type: ignore[arg-type]
    batches = list(train_loader(cfg, INPUT, 0, [Step(0, 0, 10, 1e-3)]))
    assert not any(batch.failed for batch in batches)
    return [
        (int(row), hashlib.sha256(wave.numpy().tobytes() + frames.numpy().tobytes()).hexdigest())
        for batch in batches
        for row, wave, frames in zip(batch.index_B, batch.waveform_BS, batch.frames_BTHWC, strict=True)
    ]


@pytest.mark.parametrize("mode", ["random", "stream"])
def test_http_equals_local_in_spite_of_cut_connections(root: Path, tmp_path: Path, mode: str) -> None:
    expected = rows_and_bytes(str(root), tmp_path / "unused", mode)
    with serving(root, cut=3) as (url, log):
        assert rows_and_bytes(url, tmp_path / "cache", mode) == expected
    assert len(log) > (12 if mode == "random" else 5), "some requests had to be repeated"


def test_memory_filesystem_equals_local(root: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in root.iterdir():
        memory.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    try:
        assert rows_and_bytes("memory://bucket/set", tmp_path) == rows_and_bytes(str(root), tmp_path)
    finally:
        memory.rm("/bucket", recursive=True)


def test_cache_asks_once_and_heals(root: Path, tmp_path: Path) -> None:
    with serving(root) as (url, log):
        first = rows_and_bytes(url, tmp_path)
        asked = len(log)
        assert rows_and_bytes(url, tmp_path) == first
        assert log[asked:] == ["/dataset.json"], "only the summary is looked at again"
        ClipSet([url], "all", str(tmp_path))
        cached = next(path for path in tmp_path.rglob("train-000000.tar/*"))
        cached.write_bytes(bytes(cached.stat().st_size))
        assert rows_and_bytes(url, tmp_path) == first, "a damaged copy is fetched again"


def test_manifest_follows_the_data_set(root: Path, tmp_path: Path) -> None:
    copy = make_dataset(tmp_path / "set", [Spec(seconds=1.0)])
    with serving(copy) as (url, _):
        assert len(ClipSet([url], "all", str(tmp_path / "cache"))) == 1
        make_dataset(copy, [Spec(seconds=1.0)] * 2)
        assert len(ClipSet([url], "all", str(tmp_path / "cache"))) == 2


def test_ranks_of_a_machine_fetch_one_manifest(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 10 million clips it has 2 GB, and they all begin at once."""
    download, together = RemoteStore._download, threading.Barrier(4)

    def slowly(self: RemoteStore, name: str, target: Path, most: int) -> None:
        if name == "dataset.json":
            together.wait(30)
        download(self, name, target, most)
        time.sleep(0.2)

    monkeypatch.setattr(RemoteStore, "_download", slowly)
    with serving(root) as (url, log), ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: RemoteStore(url, str(tmp_path)).manifest_folder(), range(4)))
        assert log.count("/manifest.arrow") == 1
    assert len(set(folders)) == 1
    assert sorted(p.name for p in folders[0].iterdir()) == ["dataset.json", "manifest.arrow"]


def test_server_that_stays_broken_is_named(root: Path, tmp_path: Path) -> None:
    with (
        serving(root, cut=1) as (url, _),
        pytest.raises(UserError, match=r"no data set can be read at http.*\d+ attempts in \d s failed"),
    ):
        ClipSet([url], "all", str(tmp_path), request_timeout=0.5)


def test_missing_remote_set_is_one_line(root: Path, tmp_path: Path) -> None:
    with serving(root) as (url, log), pytest.raises(UserError, match=r"no data set can be read at .*dataset.json"):
        ClipSet([f"{url}/nothing"], "all", str(tmp_path))
    assert len(log) == 1, "what does not exist is not asked for again"
    with pytest.raises(UserError, match="no URL that can be read"):
        ClipSet(["nosuch://place"], "all", str(tmp_path))


def test_server_without_ranges_is_told_apart(root: Path, tmp_path: Path) -> None:
    with serving(root, ranges=False) as (url, _), pytest.raises(UnreachableError, match="sends whole files"):
        RemoteStore(url).read("train-000000.tar", 512, 100)


@pytest.mark.parametrize("of", ["*.tar", "dataset.json", "manifest.arrow"])
def test_bytes_that_trickle_are_given_up(root: Path, tmp_path: Path, of: str) -> None:
    started = time.monotonic()
    with serving(root, shards="slow", of=of) as (url, _), pytest.raises(UserError, match="can't be read") as stop:
        store = RemoteStore(url, str(tmp_path), request_timeout=0.2)
        store.manifest_folder()
        store.read("train-000000.tar", 0, 4096)
    assert url in str(stop.value) and time.monotonic() - started < 10
    assert not [path for path in tmp_path.rglob("*") if path.name in (of, "0")]


@pytest.mark.parametrize("of", ["dataset.json", "manifest.arrow"])
def test_manifests_without_end_are_given_up(
    root: Path, tmp_path: Path, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("MAX_TEXT_BYTES", "MAX_TABLE_BYTES"):
        monkeypatch.setattr(storage, limit, 4 << 20)
    with serving(root, shards="endless", of=of) as (url, _), pytest.raises(UserError, match="more than"):
        RemoteStore(url, str(tmp_path)).manifest_folder()
    assert not [path for path in tmp_path.rglob("*") if path.name == of]


@pytest.mark.parametrize("name", ["../x.tar", "/tmp/x.tar", "http://127.0.0.1/x.tar", "a%2F..%2Fx.tar/../y.tar"])
def test_remote_sets_name_no_file_but_shards_of_theirs(root: Path, tmp_path: Path, name: str) -> None:
    served = tmp_path / "set"
    served.mkdir()
    for path in root.iterdir():
        (served / path.name).write_bytes(path.read_bytes())
    info = json.loads((root / "dataset.json").read_text())
    info["shards"][0]["name"] = name
    (served / "dataset.json").write_text(json.dumps(info))
    with serving(served) as (url, log), pytest.raises(UserError, match="'name' can't be"):
        ClipSet([url], "all", str(tmp_path / "cache"))
    assert log == ["/dataset.json", "/manifest.arrow"], "nothing else was asked for"
    with pytest.raises(StorageError, match="no name of a shard"):
        RemoteStore(url, str(tmp_path / "cache")).read(name, 0, 10)
    assert {path.name for path in tmp_path.iterdir()} == {"set", "cache"}


def test_local_store_reads_exactly_or_says_why(root: Path) -> None:
    store = open_store(f"file://{root}")
    assert isinstance(store, LocalStore)
    whole = (root / "train-000000.tar").read_bytes()
    assert store.read("train-000000.tar", 100, 200) == whole[100:300]
    with pytest.raises(StorageError, match=r"train-000000.tar is cut short: 1 bytes are missing"):
        store.read("train-000000.tar", len(whole) - 9, 10)
    with pytest.raises(StorageError, match=r"train-999999.tar: No such file"):
        store.read("train-999999.tar", 0, 1)


def test_local_store_keeps_few_files_open(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    for i in range(3 * storage.OPEN_FILES):
        name = f"train-{i:06d}.tar"
        (tmp_path / name).write_text(str(i))
        assert store.read(name, 0, 1) == str(i)[:1].encode()
    assert len(store._files) == storage.OPEN_FILES
