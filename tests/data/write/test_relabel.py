"""Labels, licences, splits and lists that change after sharding: the set becomes what a fresh run would write."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from avpretrain.cli.main import main
from avpretrain.core.errors import UserError
from avpretrain.data.manifest import Manifest
from avpretrain.data.verify import verify
from avpretrain.data.write.journal import Ledger
from avpretrain.data.write.shards import ShardConfig, ShardReport, make_shards
from avpretrain.data.write.transcode import TranscodeConfig
from tests.data.write.test_shards_resume import contents
from tests.support.forks import Forker, forker

OPTIONS = ["--clip-seconds", "1", "--shard-clips", "4", "--workers", "1"]
Rows = list[dict[str, str]]


def write_wav(path: Path, index: int, seconds: float = 2.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * 16_000)) / 16_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 + 37 * index) * t), 16_000)


def write_table(src: Path, rows: Rows) -> None:
    with (src / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "class", "split", "license"])
        writer.writeheader()
        writer.writerows(rows)


def first_rows() -> Rows:
    splits = ["train", "train", "train", "train", "train", "test", "test", "val"]
    return [
        {"file": f"{i}.wav", "class": "dgo" if i in (1, 4) else "cat", "split": split, "license": ""}
        for i, split in enumerate(splits)
    ]


def mended_rows() -> Rows:
    rows = first_rows()
    for row in rows:
        row["class"] = row["class"].replace("dgo", "dog")
    rows[2]["split"], rows[5]["split"] = "test", "train"
    rows[3]["license"] = "CC0"
    return rows


@pytest.fixture
def src(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    for i in range(8):
        write_wav(root / f"{i}.wav", i, 1.0 + i % 3)
    write_table(root, first_rows())
    return root


def shard(src: Path, out: Path, **options: Any) -> ShardReport:
    clips = TranscodeConfig(clip_seconds=1.0)
    return make_shards(src, out, ShardConfig(clips=clips, workers=1, shard_clips=4, **options))


def test_a_shard_that_was_in_place_and_not_recorded_goes(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, and then no clip has that split any more, so that no other shard takes its name."""

    def killed(self: Ledger, joined: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "record", killed)
        shard(src, tmp_path / "set")
    (left,) = (tmp_path / "set").glob("*.tar")
    split = left.name.split("-")[0]
    write_table(src, [{**row, "split": "other"} for row in first_rows()])
    report = shard(src, tmp_path / "set")
    assert not left.exists(), split
    assert sorted(p.name for p in (tmp_path / "set").glob("*.tar")) == [s.name for s in report.manifest.shards]


def said_of(out: Path) -> dict[str, tuple[str, str, str]]:
    """Each clip's labels, licence and split, by its key; manifest and tars must agree, and no clip stand twice."""
    assert verify(out) == []
    manifest = Manifest(out)
    rows = [manifest.clip(row) for row in range(len(manifest))]
    found = {clip.key: (clip.labels, clip.license, manifest.shards[clip.shard].split) for clip in rows}
    assert len(found) == len(rows)
    in_tars = {}
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith(".json"):
                    file = tar.extractfile(info)
                    assert file is not None
                    described = json.load(file)
                    labels = json.dumps(described["labels"], sort_keys=True, ensure_ascii=False)
                    in_tars[info.name.removesuffix(".json")] = labels, described["license"], described["split"]
    assert in_tars == found
    for source in {clip.source for clip in rows}:
        assert len({found[clip.key][2] for clip in rows if clip.source == source}) == 1
    return found


def test_changed_rows_are_rewritten_without_decoding(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = shard(src, out).manifest
    old = {before.clip(row).key: before.clip(row).sha256 for row in range(len(before))}
    untouched = next(shard.name for shard in before.shards if shard.split == "val")
    bytes_before = (out / untouched).read_bytes()
    write_table(src, mended_rows())
    report = shard(src, out)
    assert report.added == 0
    assert report.revision.relabelled == ["1.wav", "3.wav", "4.wav"]
    assert report.revision.resplit == ["2.wav", "5.wav"]
    fresh = shard(src, tmp_path / "fresh").manifest
    assert said_of(out) == said_of(tmp_path / "fresh")
    assert report.manifest.fingerprint == fresh.fingerprint
    assert report.manifest.info["labels"] == {"class": ["cat", "dog"]}
    assert {report.manifest.clip(row).key: report.manifest.clip(row).sha256 for row in range(len(before))} == old
    assert (out / untouched).read_bytes() == bytes_before
    for name in ("mean", "std", "clips"):
        assert report.manifest.info["log_mel"][name] == pytest.approx(fresh.info["log_mel"][name], rel=1e-9)
    assert (out / "sources.csv").read_bytes() == (tmp_path / "fresh/sources.csv").read_bytes()
    assert not list(out.glob(".*"))
    again = contents(out)
    assert shard(src, out).revision.relabelled == []
    assert contents(out) == again


def test_a_split_that_all_clips_leave_is_gone(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard(src, out)
    write_table(src, [{**row, "split": "train"} for row in first_rows()])
    manifest = shard(src, out).manifest
    assert manifest.splits == manifest.info["log_mel"]["splits"] == ["train"]
    assert set(manifest.info["log_mel"]["sums"]) == {"train"}
    assert not list(out.glob("test-*")) and not list(out.glob("val-*"))
    said_of(out)


def test_new_files_and_new_labels_in_one_run(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard(src, out)
    write_wav(src / "8.wav", 8)
    write_table(src, [*mended_rows(), {"file": "8.wav", "class": "dog", "split": "test", "license": ""}])
    report = shard(src, out)
    assert report.added == 1
    assert said_of(out) == said_of(shard(src, tmp_path / "fresh").manifest.root)


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_leaves_the_list_is_named_then_kept_or_dropped(src: Path, tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    shard(src, out)
    before = contents(out)
    write_table(src, first_rows()[1:])
    if not there:
        (src / "0.wav").unlink()
    with pytest.raises(UserError, match=r"1 files that the list does not name any more, e.g. 0.wav; --unlisted drop"):
        shard(src, out)
    assert contents(out) == before
    kept = shard(src, out, unlisted="keep")
    assert (kept.revision.kept, kept.revision.removed) == (["0.wav"], [])
    assert contents(out) == before
    dropped = shard(src, out, unlisted="drop")
    assert dropped.revision.removed == ["0.wav"]
    fresh = shard(src, tmp_path / "fresh").manifest
    assert said_of(out) == said_of(fresh.root)
    assert dropped.manifest.info["log_mel"]["mean"] == pytest.approx(fresh.info["log_mel"]["mean"], rel=1e-9)
    assert (out / "sources.csv").read_bytes() == (fresh.root / "sources.csv").read_bytes()


def test_a_set_is_not_emptied(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard(src, out)
    before = {name: seal for name, seal in contents(out).items() if name != ".work"}
    (src / "other.wav").write_bytes(b"no sound")
    write_table(src, [{"file": "other.wav", "class": "x", "split": "train", "license": ""}])
    with pytest.raises(UserError, match=r"no clip of .* is in the list any more"):
        shard(src, out, unlisted="drop")
    assert {path.name for path in out.iterdir() if path.is_file()} == set(before)


def test_a_missing_file_keeps_its_clips_and_follows_the_list(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard(src, out)
    (src / "5.wav").unlink()
    rows = first_rows()
    rows[5] |= {"class": "bird", "split": "train"}
    write_table(src, rows)
    report = shard(src, out)
    assert report.listing.missing == ["5.wav"]
    assert report.revision.resplit == ["5.wav"]
    splits = {key[0]: split for key, (_, _, split) in said_of(out).items()}
    assert splits["5"] == "train"


def test_a_file_moved_between_folders_stands_in_one_split(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    for i, name in enumerate(["train/dog/a", "train/dgo/b", "test/dog/c"]):
        write_wav(src / f"{name}.wav", i)
    shard(src, out)
    (src / "train/dog/a.wav").rename(src / "test/dog/a.wav")
    (src / "train/dgo/b.wav").rename(src / "train/dog/b.wav")
    (src / "train/dgo").rmdir()
    report = shard(src, out)
    assert report.revision.removed == ["train/dgo/b.wav", "train/dog/a.wav"]
    assert said_of(out) == said_of(shard(src, tmp_path / "fresh").manifest.root)
    assert report.shared == []
    assert report.manifest.info["labels"] == {"class": ["dog"]}


def test_deleted_files_of_a_plain_folder_keep_their_clips(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    for i, name in enumerate(["a", "b"]):
        write_wav(src / f"{name}.wav", i)
    shard(src, out)
    (src / "a.wav").unlink()
    write_wav(src / "c.wav", 5)
    report = shard(src, out)
    assert report.revision.kept == ["a.wav"]
    assert len(report.manifest) == 6


def test_copies_in_two_splits_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_wav(src / "train/a.wav", 0)
    (src / "test").mkdir()
    shutil.copy(src / "train/a.wav", src / "test/b.wav")
    main(["shards", str(src), str(out), *OPTIONS])
    said = capsys.readouterr().out
    assert "stand in several splits, e.g. test/b.wav (test) and train/a.wav (train)" in said


def test_damaged_clips_are_not_given_new_labels(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = shard(src, out).manifest
    clip = next(clip for clip in map(manifest.clip, range(len(manifest))) if clip.source == "1.wav")
    path = out / manifest.shards[clip.shard].name
    data = bytearray(path.read_bytes())
    data[clip.audio_offset + clip.audio_length // 2] ^= 1
    path.write_bytes(data)
    write_table(src, mended_rows())
    with pytest.raises(UserError, match=f"clip {clip.key} in .* is damaged"):
        shard(src, out)
    assert Manifest(out).fingerprint == manifest.fingerprint


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with forker(tmp_path_factory.mktemp("logs"), "avpretrain.cli.shards") as forks:
        yield forks


def test_killed_anywhere_a_revision_ends_in_the_same_bytes(src: Path, forks: Forker, tmp_path: Path) -> None:
    begun, straight = tmp_path / "begun/set", tmp_path / "straight/set"
    forks.run("shards", src, begun, *OPTIONS)
    write_wav(src / "8.wav", 8)
    write_table(src, [*mended_rows(), {"file": "8.wav", "class": "dog", "split": "test", "license": ""}])
    shutil.copytree(begun, straight)
    forks.run("shards", src, straight, *OPTIONS)
    wanted, kills = contents(straight), 0
    for changes in range(0, 40, 4):
        killed = tmp_path / f"{changes}/set"
        shutil.copytree(begun, killed)
        kills += forks.start("shards", src, killed, *OPTIONS).kill_after(killed, changes)
        forks.run("shards", src, killed, *OPTIONS)
        assert contents(killed) == wanted
    assert kills >= 3


def test_a_part_joined_in_part_keeps_its_split_until_its_clips_move(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped when the first two clips of a file of three stand in a shard; then the file goes to another split."""
    rows = [row | {"split": "train"} for row in first_rows() if row["file"] == "2.wav"]
    for path in src.glob("*.wav"):
        if path.name != "2.wav":
            path.unlink()
    write_table(src, rows)
    clips = TranscodeConfig(clip_seconds=1.0)
    cfg = ShardConfig(clips=clips, workers=1, shard_clips=2)
    record = Ledger.record

    def stop(ledger: Ledger, joined: Any) -> None:
        record(ledger, joined)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            make_shards(src, tmp_path / "killed", cfg)
    write_table(src, [row | {"split": "test"} for row in rows])
    make_shards(src, tmp_path / "killed", cfg)
    make_shards(src, tmp_path / "fresh", cfg)
    assert said_of(tmp_path / "killed") == said_of(tmp_path / "fresh")


def test_a_list_that_changes_while_work_is_unfinished(src: Path, forks: Forker, tmp_path: Path) -> None:
    """Killed during the first run, or during a revision, and the list changed once more, there and back."""
    for changes in range(2, 42, 10):
        killed = tmp_path / f"{changes}/set"
        write_table(src, first_rows())
        forks.start("shards", src, killed, *OPTIONS).kill_after(killed, changes)
        write_table(src, mended_rows())
        forks.start("shards", src, killed, *OPTIONS).kill_after(killed, 50 - changes)
        write_table(src, first_rows())
        forks.start("shards", src, killed, *OPTIONS).kill_after(killed, changes)
        write_table(src, mended_rows())
        forks.run("shards", src, killed, *OPTIONS)
        assert Manifest(killed).info["clips"] == sum(1 + i % 3 for i in range(8))
        fresh = tmp_path / "fresh"
        forks.run("shards", src, fresh, *OPTIONS)
        assert said_of(killed) == said_of(fresh)
        assert sorted(p.name for p in killed.iterdir()) == sorted(
            [s.name for s in Manifest(killed).shards]
            + ["dataset.json", "manifest.arrow", "missing.csv", "skipped.csv", "sources.csv"]
        )
