"""Each public set in small on a server of this machine, downloaded and found by its source; clips by a fake yt-dlp."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import runpy
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.locks import locked
from avpretrain.data.fetch import http
from avpretrain.data.fetch.recipes import RECIPES, FetchOptions, Recipe, download, segments
from avpretrain.data.sources import find_items
from tests.support.media_files import write_media
from tests.support.servers import serving

DATA = Path(__file__).parents[3] / "data"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.0)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def zipped(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def wav(place: Path) -> bytes:
    soundfile.write(place / "x.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16_000)
    return (place / "x.wav").read_bytes()


def grid(url: str) -> Recipe:
    """The set at a server of this machine as its owner's."""
    parts = tuple(
        dataclasses.replace(part, remote=dataclasses.replace(part.remote, url=f"{url}/{part.remote.name}"))
        for part in RECIPES["grid"].parts
    )
    listing = RECIPES["grid"].listing
    assert listing is not None
    return dataclasses.replace(
        RECIPES["grid"], parts=parts, listing=dataclasses.replace(listing, url=f"{url}/{listing.name}")
    )


def record(place: Path, *names: str, kind: str = "md5") -> None:
    """Writes the owner's record of files that are there."""
    states = [
        {"key": name, "size": (place / name).stat().st_size,
         "checksum": f"{kind}:{hashlib.new(kind, (place / name).read_bytes()).hexdigest()}"}
        for name in names
    ]  # fmt: skip
    (place / "grid_record.json").write_text(json.dumps({"files": states}))


def script(monkeypatch: pytest.MonkeyPatch, name: str, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
    monkeypatch.syspath_prepend(DATA)
    runpy.run_path(str(DATA / f"{name}.py"), run_name="__main__")


def test_esc50_in_one_command_over_a_line_that_drops(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head = b"filename,fold,target,category,esc10,src_file,take\n"
    table = head + b"1-1-A-0.wav,1,0,dog,True,1,A\n2-2-A-1.wav,2,1,hen,False,2,A\n"
    files = {"ESC-50-master/meta/esc50.csv": table, "ESC-50-master/audio/1-1-A-0.wav": wav(tmp_path)}
    zipped(site / "ESC-50-master.zip", files | {"ESC-50-master/audio/2-2-A-1.wav": wav(tmp_path)})
    with serving(site, cut=2) as (url, log):
        urllib.request.urlopen(f"{url}/ESC-50-master.zip").close()
        args = [tmp_path / "esc", tmp_path / "shards", "--download", "--mirror", url, "--workers", "1"]
        script(monkeypatch, "esc50", *args)
        assert len(log) == 3
        script(monkeypatch, "esc50", *args)
        assert len(log) == 3
    assert "CC BY-NC 3.0" in capsys.readouterr().out
    info = json.loads((tmp_path / "shards" / "dataset.json").read_text())
    assert (info["clips"], sorted(info["labels"]["class"])) == (2, ["dog", "hen"])


def test_speechcommands_is_held_to_its_sum(site: Path, tmp_path: Path) -> None:
    with tarfile.open(site / "speech_commands_v0.02.tar.gz", "w:gz") as tar:
        for name in ("yes/a_nohash_0.wav", "no/b_nohash_0.wav", "no/c_nohash_0.wav", "_background_noise_/n.wav"):
            tar.add(tmp_path / "x.wav" if wav(tmp_path) else "", f"./{name}")
        for name, line in (("testing_list.txt", "yes/a_nohash_0.wav"), ("validation_list.txt", "no/b_nohash_0.wav")):
            (tmp_path / name).write_text(line)
            tar.add(tmp_path / name, f"./{name}")
    with serving(site) as (url, _):
        with pytest.raises(UserError, match="its owner states 2428923189; run the same command"):
            download(RECIPES["speechcommands"], tmp_path / "sc", FetchOptions(mirror=url))
        assert not (tmp_path / "sc" / "yes").exists()
        done = download(RECIPES["speechcommands"], tmp_path / "sc", FetchOptions(mirror=url, any_version=True))
    assert (done.present, done.wanted) == (1, 1)
    found = {item.path: item.split for item in find_items("speechcommands", tmp_path / "sc", None).items}
    assert found == {"yes/a_nohash_0.wav": "test", "no/b_nohash_0.wav": "val", "no/c_nohash_0.wav": "train"}


def test_fsdd(site: Path, tmp_path: Path) -> None:
    names = ("0_ann_0.wav", "7_bob_12.wav")
    files = {f"free-spoken-digit-dataset-master/recordings/{name}": b"wav" for name in names}
    zipped(site / "free-spoken-digit-dataset-master.zip", files)
    with serving(site) as (url, _):
        download(RECIPES["fsdd"], tmp_path / "fsdd", FetchOptions(mirror=f"{url}/"))
    items = find_items("fsdd", tmp_path / "fsdd", None).items
    assert [(i.labels["class"], i.labels["speaker"], i.split) for i in items] == [
        ("0", "ann", "test"), ("7", "bob", "train"),
    ]  # fmt: skip


def test_grid_takes_the_talkers_that_are_there(site: Path, tmp_path: Path) -> None:
    """s1 is whole, s2 is not what the record states, all others are missing; later s2 comes right."""
    align = b"0 23750 sil\n23750 29500 bin\n"
    zipped(site / "alignments.zip", {"alignments/s1/bbaf2n.align": align, "alignments/s2/lbwd5s.align": align})
    zipped(site / "s1.zip", {"s1/bbaf2n.mpg": b"video"})
    zipped(site / "s2.zip", {"s2/lbwd5s.mpg": b"video"})
    record(site, "alignments.zip", "s1.zip", "s2.zip")
    right = (site / "s2.zip").read_bytes()
    (site / "s2.zip").write_bytes(right[:-1] + b"x")
    folder = tmp_path / "grid"
    with serving(site) as (url, log):
        done = download(grid(url), folder, FetchOptions(jobs=2))
        assert (done.present, done.wanted, len(done.lost)) == (2, 34, 32)
        assert "31 x the server answers 404 Not Found" in done.reasons[0]
        rows = dict(line.split(",", 1) for line in (folder / "unavailable.csv").read_text().splitlines()[1:])
        assert rows["s3.zip"].startswith("yes,")
        assert rows["s2.zip"].startswith('no,"its md5 is')
        (site / "s2.zip").write_bytes(right)
        log.clear()
        done = download(grid(url), folder, FetchOptions(jobs=2))
        assert (done.present, log) == (3, ["/s2.zip"])  # what is gone is not asked for again
    items = {item.path: item for item in find_items("grid", folder, None).items}
    assert set(items) == {"s1/bbaf2n.mpg", "s2/lbwd5s.mpg"}
    assert items["s1/bbaf2n.mpg"].labels["speaker"] == "s1"
    assert items["s1/bbaf2n.mpg"].labels["words"] == "0.000-0.950:sil;0.950-1.180:bin"


def test_a_mistyped_mirror_blocks_nothing(site: Path, tmp_path: Path) -> None:
    zipped(site / "s1.zip", {"s1/bbaf2n.mpg": b"video"})
    record(site, "s1.zip")
    folder = tmp_path / "grid"
    with serving(site) as (url, _):
        with pytest.raises(UserError, match="404") as error:
            download(grid(url), folder, FetchOptions(mirror=f"{url}/tpyo"))
        assert "--try-gone" not in str(error.value)
        assert ",yes," not in (folder / "unavailable.csv").read_text()
        assert download(grid(url), folder).present == 1
    (site / "other").mkdir()
    zipped(site / "other" / "s2.zip", {"s2/bbaf2n.mpg": b"video"})
    with serving(site) as (url, _):  # what the owner says is gone a mirror may have
        assert ",yes," in (folder / "unavailable.csv").read_text()
        assert download(grid(url), folder, FetchOptions(mirror=f"{url}/other")).present == 2
        assert "s3.zip,yes," in (folder / "unavailable.csv").read_text()  # the owner's word holds
        (site / "s1.zip").unlink()
        for _ in range(2):
            with pytest.raises(UserError, match=r"nothing of the set could be had .*--try-gone asks again"):
                download(grid(url), tmp_path / "none")


def test_files_are_not_taken_unchecked_unless_that_is_asked_for(site: Path, tmp_path: Path) -> None:
    zipped(site / "s1.zip", {"s1/bbaf2n.mpg": b"video"})
    folder, page = tmp_path / "grid", site / "grid_record.json"
    with serving(site) as (url, log):
        with pytest.raises(UserError, match=r"record .* can't be had: .*404.*--any-version takes files unchecked"):
            download(grid(url), folder)
        others: list[object] = [
            {"files": []},
            {"files": [{"key": "s1.zip"}]},
            {"files": [{"key": "s1.zip", "size": 1e999}]},
        ]
        record(site, "s1.zip", kind="sha1")
        for text in ("<html><body>Log in", page.read_text(), *map(json.dumps, others)):
            page.write_text(text)
            with pytest.raises(UserError, match=r"is no record of .*--any-version"):
                download(grid(url), folder)
            assert not list((folder / ".download").iterdir())  # the next run asks again
        assert "/s1.zip" not in log
        log.clear()
        assert download(grid(url), folder, FetchOptions(any_version=True, jobs=1)).present == 1
        assert "/grid_record.json" not in log
        record(site, "s1.zip", kind="sha256")
        (site / "mirror").mkdir()
        zipped(site / "mirror" / "s1.zip", {"s1/bbaf2n.mpg": b"other"})
        with pytest.raises(UserError, match="nothing of the set"):
            download(grid(url), tmp_path / "second", FetchOptions(mirror=f"{url}/mirror", jobs=1))
    # A mirror's files are held to the owner's record.
    assert 's1.zip,no,"its sha256 is' in (tmp_path / "second" / "unavailable.csv").read_text()


def test_two_runs_do_not_download_into_one_folder(site: Path, tmp_path: Path) -> None:
    zipped(site / "free-spoken-digit-dataset-master.zip", {"x/recordings/0_ann_0.wav": b"wav"})
    with serving(site) as (url, log):
        options = FetchOptions(mirror=url)
        with locked(tmp_path / "fsdd", "downloading"), pytest.raises(UserError, match="is downloading in"):
            download(RECIPES["fsdd"], tmp_path / "fsdd", options)
        assert not log
        download(RECIPES["fsdd"], tmp_path / "fsdd", options)
    assert sorted(p.name for p in (tmp_path / "fsdd").iterdir()) == [".download", "recordings"]


YT_DLP = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in
    -o) out="$(echo "$2" | sed "s/%%/\\x01/g")"; shift
      case "${{out%?(ext)s}}" in *%*) echo "ERROR: invalid output template" >&2; exit 1;; esac
      out="$(echo "$out" | sed "s/\\x01/%/g")";;
    --download-sections) part="$2"; shift;;
    --cookies) echo "cookies $2" >> "{log}"; shift;;
    https:*) id="${{1##*=}}";;
  esac
  shift
done
echo "$id $part" >> "{log}"
case "$id" in
  gone_______) echo "ERROR: [youtube] gone_______: Video unavailable" >&2; exit 1;;
  busy_______)
    [ -e "{log}.calm" ] || {{ echo "ERROR: [youtube] busy_______: HTTP Error 429: Too Many Requests" >&2; exit 1; }};;
esac
cp "{clip}" "${{out%.*}}.mp4"
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A yt-dlp and an ffmpeg on PATH; the file that the former writes its calls to."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    clip = write_media(tmp_path / "clip.mp4", 1.0)
    (folder / "yt-dlp").write_text(YT_DLP.format(log=log, clip=clip))
    (folder / "ffmpeg").write_text("#!/bin/sh\n")
    for path in folder.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    yield log


VGGSOUND = """aaaaaaaaaaa,30,dog barking,train
-bbbbbbbbbb,5,"playing harp, quietly",test
gone_______,0,dog barking,train
busy_______,0,dog barking,train
bad id,0,dog barking,train
"""


def test_vggsound_in_one_command(
    site: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "vggsound.csv").write_text(VGGSOUND)
    folder = tmp_path / "vgg"
    with serving(site) as (url, _):
        args = [folder, tmp_path / "shards", "--download", "--mirror", url, "--jobs", "2", "--workers", "1"]
        script(monkeypatch, "vggsound", *args, "--yt-dlp", "yt-dlp --cookies 'my jar'")
        out = capsys.readouterr().out
        assert "2 of 5 clips are here" in out
        assert "1 x Video unavailable" in out
        assert "the server refuses more for now: HTTP Error 429: Too Many Requests (tried again at the next run)" in out
        lines = calls.read_text().splitlines()
        assert {"aaaaaaaaaaa *30.000-40.000", "-bbbbbbbbbb *5.000-15.000", "cookies my jar"} <= set(lines)
        assert not any("bad id" in line for line in lines)
        calls.unlink()
        calls.with_name("calls.calm").touch()
        script(monkeypatch, "vggsound", *args)
        assert calls.read_text().splitlines() == ["busy_______ *0.000-10.000"]
    assert sorted(p.name for p in (folder / "videos").iterdir()) == [
        "-bbbbbbbbbb_000005.mp4", "aaaaaaaaaaa_000030.mp4", "busy________000000.mp4",
    ]  # fmt: skip
    assert list((folder / ".download").iterdir()) == []  # nothing of what failed is left
    info = json.loads((tmp_path / "shards" / "dataset.json").read_text())
    assert info["clips"] == 3
    assert sorted(info["labels"]["class"]) == ["dog barking", "playing harp, quietly"]


def test_audioset_by_a_list_of_ones_own(site: Path, tmp_path: Path, calls: Path) -> None:
    head = "# Segments csv created\n# num_ytids=2\n# YTID, start_seconds, end_seconds, positive_labels\n"
    rows = 'aaaaaaaaaaa, 30.000, 40.000, "/m/1,/m/2"\ngone_______, 0.000, 10.000, "/m/1"\nccccccccccc, 0, 9.5, "/m/2"\n'
    (tmp_path / "unbalanced_train_segments.csv").write_text(head + rows)
    (site / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/1,Dog\n1,/m/2,Harp\n")
    folder, own = tmp_path / "as", str(tmp_path / "unbalanced_train_segments.csv")
    with serving(site) as (url, log):
        options = FetchOptions(mirror=url, table=own, limit=2, whole_videos=True)
        done = download(RECIPES["audioset"], folder, options)
        assert log == ["/class_labels_indices.csv"]
        assert (done.present, done.wanted, [lost.item for lost in done.lost]) == (1, 2, ["gone_______"])
        options = FetchOptions(mirror=url, table=f"{url}/seg.csv?x=1")
        with pytest.raises(UserError, match=r"seg\.csv"):
            download(RECIPES["audioset"], folder, options)
    items = find_items("audioset", folder, Path(own)).items
    assert [(i.path, i.labels["class"], i.split) for i in items] == [
        ("videos/aaaaaaaaaaa.mp4", ["Dog", "Harp"], "unbalanced_train")
    ]
    assert sorted(calls.read_text().splitlines()) == ["aaaaaaaaaaa ", "gone_______ "]


def test_clips_of_what_a_killed_attempt_left(tmp_path: Path, calls: Path) -> None:
    """In a folder with a %; at a time that has more digits than six; counted once each."""
    folder, own = tmp_path / "100% mine", tmp_path / "t_segments.csv"
    own.write_text("aaaaaaaaaaa, 12345.678, 12355.678, /m/1\nccccccccccc, 0, 10, /m/1\ngone_______, 0, 10, /m/1\n")
    for name, files in (
        ("aaaaaaaaaaa_012345", ("clip.webm",)),
        ("ccccccccccc_000000", ("clip.f137.mp4", "clip.temp.mp4")),
    ):
        (folder / ".download" / name).mkdir(parents=True)
        for file in files:
            (folder / ".download" / name / file).write_bytes(b"part")
    seen: list[tuple[int, int, int]] = []
    recipe = dataclasses.replace(RECIPES["audioset"], parts=())
    options = FetchOptions(table=str(own), jobs=1)
    done = download(recipe, folder, options)
    assert {lost.item: lost.reason for lost in done.lost} == {
        "aaaaaaaaaaa_012345": "yt-dlp left 2 files", "gone________000000": "Video unavailable",
    }  # fmt: skip
    assert (folder / "videos" / "ccccccccccc_000000.mp4").is_file()
    done = download(recipe, folder, dataclasses.replace(options, try_gone=True), lambda *counts: seen.append(counts))
    assert [lost.item for lost in done.lost] == ["gone________000000"]
    assert seen == [(2, 3, 0), (3, 3, 1)]
    assert calls.read_text().splitlines()[0] == "aaaaaaaaaaa *12345.678-12355.678"


def test_what_can_not_be_done_is_said(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no yt-dlp on PATH.*pip install yt-dlp"):
        download(RECIPES["vggsound"], tmp_path / "v", FetchOptions())
    (tmp_path / "yt-dlp").write_text("")
    (tmp_path / "yt-dlp").chmod(0o755)
    with pytest.raises(UsageError, match=r"no ffmpeg on PATH.*--whole-videos"):
        download(RECIPES["vggsound"], tmp_path / "v", FetchOptions())
    for start, words in (("nan", "from nan to 20 s"), ("30", "from 30 to 20 s"), ("x", "no list of segments")):
        (tmp_path / "t_segments.csv").write_text(f'aaaaaaaaaaa, {start}, 20, "/m/1"\n')
        with pytest.raises(UserError, match=words):
            segments("audioset", tmp_path / "t_segments.csv")
    with pytest.raises(UsageError, match="are for sets of YouTube"):
        download(RECIPES["fsdd"], tmp_path / "v", FetchOptions(limit=3))
    with pytest.raises(UsageError, match="no address"):
        FetchOptions(mirror="/folder")
    assert not (tmp_path / "v").exists()
    with pytest.raises(SystemExit) as end:
        script(monkeypatch, "fsdd", tmp_path, tmp_path / "out", "--mirror", "http://127.0.0.1:1")
    assert end.value.code == 2
    with serving(site) as (url, _), pytest.raises(UserError, match=r"s1|nothing of the set could be had"):
        download(grid(url), tmp_path / "g", FetchOptions(any_version=True))
