"""Files by HTTP from a server of this machine: resumed, checked, or reported."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import threading
import urllib.request
import zipfile
from pathlib import Path

import pytest

from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.fetch import archives, http
from avpretrain.data.fetch.archives import unpack
from avpretrain.data.fetch.http import GoneError, LostError, Remote, fetch
from avpretrain.data.fetch.parallel import in_threads
from tests.support.servers import serving

DATA = bytes(range(256)) * 40


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.bin").write_bytes(DATA)
    return tmp_path / "site"


def test_a_dropped_connection_is_resumed_where_it_broke(site: Path, tmp_path: Path) -> None:
    arrived: list[int] = []
    with serving(site, cut=2) as (url, log):
        urllib.request.urlopen(f"{url}/a.bin").close()  # the next one breaks off
        remote = Remote(name="b.bin", url=f"{url}/a.bin", size=len(DATA))
        path = fetch(remote, tmp_path / "out", wait=0, on_bytes=arrived.append)
        assert path.read_bytes() == DATA
        assert sum(arrived) == len(DATA)  # no byte came twice
        assert len(log) == 3
        fetch(remote, tmp_path / "out")
        assert len(log) == 3  # it is there
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.bin"]


def test_a_later_run_resumes_unless_the_file_changed(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for changed in (False, True):
        with serving(site, cut=1) as (url, _), pytest.raises(LostError, match="ended early"):
            fetch(Remote(name="a.bin", url=f"{url}/a.bin"), out, wait=0)
        assert (out / "a.bin.part").stat().st_size > len(DATA) // 2
        if changed:
            (site / "a.bin").write_bytes(DATA[::-1])
        arrived: list[int] = []
        with serving(site) as (url, _):
            path = fetch(Remote(name="a.bin", url=f"{url}/a.bin"), out, on_bytes=arrived.append)
        assert path.read_bytes() == (site / "a.bin").read_bytes()
        assert (sum(arrived) == len(DATA)) == changed
        path.unlink()


def test_a_server_without_ranges_begins_again(site: Path, tmp_path: Path) -> None:
    with serving(site, cut=2, ranges=False) as (url, _):
        urllib.request.urlopen(f"{url}/a.bin").close()
        assert fetch(Remote(name="a", url=f"{url}/a.bin"), tmp_path / "out", wait=0).read_bytes() == DATA


def test_what_the_owner_states_is_checked(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    with serving(site) as (url, log):
        fetch(Remote(name="right", url=f"{url}/a.bin", size=len(DATA), checksum=right), tmp_path)
        with pytest.raises(LostError, match="md5 is"):
            fetch(Remote(name="wrong", url=f"{url}/a.bin", checksum="md5:00"), tmp_path)
        arrived: list[int] = []
        monkeypatch.setattr(http, "BLOCK", 4)
        with pytest.raises(LostError, match="its owner states, 7"):
            fetch(Remote(name="wrong", url=f"{url}/a.bin", size=7), tmp_path, on_bytes=arrived.append)
        assert not arrived  # its length was enough to know
        assert len(log) == 5  # once more from the beginning
        with pytest.raises(GoneError, match="404"):
            fetch(Remote(name="none", url=f"{url}/none"), tmp_path)
    assert not list(tmp_path.glob("wrong*"))
    with pytest.raises(UsageError, match="no address"):
        fetch(Remote(name="x", url="file:///etc/hosts"), tmp_path)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, _):
        pass
    with pytest.raises(LostError, match="refused"):
        fetch(Remote(name="x", url=f"{url}/x"), tmp_path, wait=0)


def test_what_arrived_before_a_silence_is_kept(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", 0.5)
    arrived: list[int] = []
    with serving(site, shards="stalled", of="*.bin") as (url, log):
        path = fetch(Remote(name="b.bin", url=f"{url}/a.bin"), tmp_path / "out", wait=0, on_bytes=arrived.append)
        assert path.read_bytes() == DATA
        assert (sum(arrived), len(log)) == (len(DATA), 2)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("remote", [{"size": len(DATA)}, {"most": 100_000}])
def test_an_endless_file_is_given_up(site: Path, tmp_path: Path, remote: dict[str, int]) -> None:
    with serving(site, shards="endless", of="*.bin") as (url, log):
        with pytest.raises(LostError, match=f"more .*{next(iter(remote.values()))}"):
            fetch(Remote(name="b.bin", url=f"{url}/a.bin", **remote), tmp_path / "out", wait=0)
        assert len(log) == 2
    assert not list((tmp_path / "out").iterdir())


def test_only_checksums_that_are_known() -> None:
    with pytest.raises(ValueError, match="must be md5 or sha256, not 'shake_128:00'"):
        Remote(name="x", url="http://x", checksum="shake_128:00")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("x" * 300,)])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_no_folder_can_hold(tmp_path: Path, kind: str, names: tuple[str, ...]) -> None:
    (tmp_path / "file").write_bytes(b"1")
    archive = tmp_path / f"a.{kind}"
    with zipfile.ZipFile(archive, "w") if kind == "zip" else tarfile.open(archive, "w") as out:
        for name in names:
            out.write(tmp_path / "file", name) if isinstance(out, zipfile.ZipFile) else out.add(tmp_path / "file", name)
    with pytest.raises(LostError, match="has a name that can't be written"):
        unpack(archive, tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST_SMALL", 1000)
    archive = tmp_path / "a.zip"
    for size in (1_000_000, 5_000):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("zeros", bytes(size))
        if size == 5_000:  # 100 times the archive's
            unpack(archive, tmp_path / "set")
        else:
            with pytest.raises(LostError, match="unpacks to more than"):
                unpack(archive, tmp_path / "set")
            assert not list(tmp_path.iterdir())
    assert (tmp_path / "set" / "zeros").stat().st_size == 5_000


def test_what_is_in_the_way_of_an_archive_is_said(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("top/sub/1.wav", b"1")
        zipped.writestr("top/2.wav", b"1")
    (tmp_path / "set" / "2.wav").mkdir(parents=True)
    for place in ("2.wav", "sub"):
        with pytest.raises(UserError, match=f"{place} can't be written"):
            unpack(archive, tmp_path / "set")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "set"]
        shutil.rmtree(tmp_path / "set")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "sub").write_text("mine")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_stays_inside_its_folder(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(b"1")
    archive, names = tmp_path / f"a.{kind}", ("top/sub/1.wav", "top/2.wav", "../out.wav")
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for name in names:
                zipped.write(tmp_path / "file", name)
    else:
        with tarfile.open(archive, "w:gz") as tar:
            for name in names:
                tar.add(tmp_path / "file", name)
            tar.addfile(tarfile.TarInfo("/abs.wav"))
            link = tarfile.TarInfo("top/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "set" / "sub" / "mine").write_text("mine")
    unpack(archive, tmp_path / "set")
    assert sorted(str(p.relative_to(tmp_path / "set")) for p in (tmp_path / "set").rglob("*") if p.is_file()) == [
        "2.wav", "sub/1.wav", "sub/mine",
    ]  # fmt: skip
    assert not (tmp_path / "out.wav").exists()
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(LostError, match="damaged"):
        unpack(archive, tmp_path / "set")
    assert not archive.exists()


def test_threads_take_items_one_by_one() -> None:
    running, most, lock = 0, 0, threading.Lock()
    begun: list[int] = []

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running, begun[:] = running + 1, [*begun, item]
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1
        if item == 50:
            raise ValueError("no")
        return item * item

    assert sorted(in_threads(range(20), work, 3)) == [(i, i * i) for i in range(20)]
    assert most == 3
    begun.clear()
    results = in_threads(range(10**9), work, 2)
    next(results)
    results.close()
    assert len(begun) < 10
    with pytest.raises(ValueError, match="no"):
        list(in_threads(range(50, 60), work, 2))
