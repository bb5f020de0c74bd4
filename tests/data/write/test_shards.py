"""`avpretrain shards` and `inspect`: what is written, what is refused, what is added, and that damage is found."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.decode import decode_audio, decode_video
from avpretrain.data.features import log_mel
from avpretrain.data.manifest import Manifest
from avpretrain.data.verify import verify
from avpretrain.data.write.shards import ShardConfig, ShardReport, make_shards
from avpretrain.data.write.transcode import TranscodeConfig
from tests.support.media_files import write_media


def shard(src: Path, out: Path, **options: Any) -> ShardReport:
    clips = TranscodeConfig(**{"clip_seconds": 1.0, **options.pop("clips", {})})
    return make_shards(src, out, ShardConfig(clips=clips, workers=2, **options))


def snapshot(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six files in two classes and two splits, three of which can't be used."""
    root = tmp_path_factory.mktemp("videos")
    for i, name in enumerate(["train/dog/a b.mp4", "train/dog/c.mkv", "train/cat/d.mp4", "test/cat/e.mp4"]):
        write_media(root / name, 2.0 + i % 2)
    (root / "train/cat/broken.mp4").write_bytes(b"\0" * 500)
    write_media(root / "train/dog/silent.mp4", audio=None)
    write_media(root / "train/dog/blind.mp4", video=None)
    (root / "notes.txt").write_text("not a video")
    return root


@pytest.fixture(scope="module")
def sharded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharded") / "set"
    shard(source, out, shard_clips=4)
    return out


def test_everything_is_written_and_said(sharded: Path) -> None:
    manifest = Manifest(sharded)
    assert [(s.name, s.clips) for s in manifest.shards] == [
        ("test-000000.tar", 3),
        ("train-000000.tar", 4),
        ("train-000001.tar", 3),
    ]
    info = manifest.info
    assert (info["name"], info["clips"], info["bytes"]) == ("set", 10, sum(s.bytes for s in manifest.shards))
    assert info["hours"] == pytest.approx(10 / 3600)
    assert info["labels"] == {"class": ["cat", "dog"]}
    rows = list(csv.DictReader((sharded / "skipped.csv").open()))
    assert {Path(row["path"]).stem: row["reason"] for row in rows} == {
        "broken": "can't be opened: Invalid data found when processing input",
        "silent": "has no audio",
        "blind": "has no video",
    }
    assert not list(sharded.glob(".*"))


def test_rows_point_at_media_that_decode(sharded: Path, source: Path) -> None:
    manifest = Manifest(sharded)
    keys = set()
    for row in range(len(manifest)):
        clip = manifest.clip(row)
        data = (sharded / manifest.shards[clip.shard].name).read_bytes()
        video = data[clip.video_offset : clip.video_offset + clip.video_length]
        audio = data[clip.audio_offset : clip.audio_offset + clip.audio_length]
        assert hashlib.sha256(video + audio).hexdigest() == clip.sha256
        green = decode_video(video, [0.5])[0, -8:, -8:, 1].mean() / 10
        assert green == pytest.approx(clip.start + 0.5, abs=0.2)
        assert len(decode_audio(audio, 16_000)) == 16_000
        assert (source / clip.source).is_file()
        assert clip.label_dict == {"class": Path(clip.source).parts[1]}
        assert clip.key.replace("-", "").replace("_", "").isalnum()
        keys.add(clip.key)
    assert len(keys) == len(manifest)


def test_any_webdataset_reader_can_read_them(sharded: Path) -> None:
    paths = [str(path) for path in sorted(sharded.glob("*.tar"))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert len(samples) == 10
    for sample in samples:
        assert {"mp4", "flac", "json"} <= set(sample)
        described = json.loads(sample["json"])
        assert described["labels"]["class"] in ("cat", "dog")
        assert described["sha256"] == hashlib.sha256(sample["mp4"] + sample["flac"]).hexdigest()
    with tarfile.open(paths[0]) as tar:
        assert all((m.mtime, m.uid, m.gid, m.uname) == (0, 0, 0, "") for m in tar)


def test_log_mel_statistics_are_those_of_the_training_clips(sharded: Path) -> None:
    import torch

    manifest = Manifest(sharded)
    values = []
    for row in range(len(manifest)):
        clip = manifest.clip(row)
        shard_ = manifest.shards[clip.shard]
        if shard_.split == "train":
            data = (sharded / shard_.name).read_bytes()
            pcm = decode_audio(data[clip.audio_offset : clip.audio_offset + clip.audio_length], 16_000)
            wave = torch.from_numpy(pcm.astype(np.float32) / 32768)
            values.append(log_mel((wave - wave.mean())[None]).double().flatten())
    expected = torch.cat(values)
    assert manifest.info["log_mel"]["mean"] == pytest.approx(float(expected.mean()), rel=1e-6)
    assert manifest.info["log_mel"]["std"] == pytest.approx(float(expected.std(correction=0)), rel=1e-6)
    assert manifest.info["log_mel"]["clips"] == 7


def test_fingerprint_depends_on_clips_labels_and_splits_only(source: Path, sharded: Path, tmp_path: Path) -> None:
    other_shards = shard(source, tmp_path / "a", shard_clips=2, name="other").manifest
    assert other_shards.fingerprint == Manifest(sharded).fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    (moved / "train/dog/c.mkv").rename(moved / "train/dog/z.mkv")
    assert shard(moved, tmp_path / "b").manifest.fingerprint == Manifest(sharded).fingerprint
    (moved / "train/dog/z.mkv").rename(moved / "train/cat/z.mkv")
    assert shard(moved, tmp_path / "c").manifest.fingerprint != Manifest(sharded).fingerprint


def test_running_again_changes_nothing(source: Path, sharded: Path) -> None:
    before = snapshot(sharded)
    assert shard(source, sharded).added == 0
    assert snapshot(sharded) == before
    assert not list(sharded.glob(".*"))


def test_new_files_are_added_and_old_shards_left_alone(source: Path, tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    shutil.copytree(source, src)
    shard(src, out, shard_clips=4)
    before = snapshot(out)
    write_media(src / "train/bird/new.mp4", 2.0)
    report = shard(src, out, shard_clips=4)
    after = snapshot(out)
    assert report.added == 1
    assert set(after) - set(before) == {"train-000002.tar"}
    assert all(after[name] == before[name] for name in before if name.endswith(".tar"))
    assert report.manifest.info["labels"]["class"] == ["bird", "cat", "dog"]
    assert verify(out) == []
    whole = shard(src, tmp_path / "whole").manifest
    assert whole.fingerprint == report.manifest.fingerprint
    assert whole.info["log_mel"]["mean"] == pytest.approx(report.manifest.info["log_mel"]["mean"], rel=1e-9)


def test_changed_files_are_named_and_skipped_ones_tried_again_when_they_change(source: Path, tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    shutil.copytree(source, src)
    shard(src, out)
    write_media(src / "train/cat/broken.mp4", 1.0)
    os.utime(src / "train/cat/d.mp4", (1, 1))
    report = shard(src, out)
    assert report.added == 1
    assert report.changed == ["train/cat/d.mp4"]
    assert report.manifest.info["clips"] == 11
    assert [done.path for done in report.skipped] == ["train/dog/blind.mp4", "train/dog/silent.mp4"]
    assert shard(src, out, retry=True).added == 2


def test_other_options_are_refused(source: Path, sharded: Path) -> None:
    before = snapshot(sharded)
    with pytest.raises(UsageError, match=r"fps 8.0 \(now 4.0\)"):
        shard(source, sharded, clips={"fps": 4.0})
    assert snapshot(sharded) == before


def test_a_folder_with_other_files_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="holds other files"):
        shard(source, tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        shard(source, tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_usable_is_an_error_that_lists_the_files(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    (src / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"nothing in .* was usable: 1 files skipped, e.g. a.mp4 can't be opened"):
        shard(src, out)
    assert sorted(p.name for p in out.iterdir()) == ["missing.csv", "skipped.csv", "sources.csv"]
    write_media(src / "b.mp4")
    assert shard(src, out).manifest.info["clips"] == 1


def test_two_writers_do_not_meet(source: Path, tmp_path: Path) -> None:
    from avpretrain.core.locks import locked

    with locked(tmp_path, "writing shards"), pytest.raises(UserError, match=rf"process {os.getpid()} on .* is writing"):
        shard(source, tmp_path)
    (tmp_path / ".lock").write_text("1 elsewhere")  # as a kill leaves it
    assert shard(source, tmp_path).manifest.info["clips"]
    assert not (tmp_path / ".lock").exists()


def test_copies_keep_the_picture(source: Path, tmp_path: Path) -> None:
    manifest = shard(source, tmp_path, clips={"transcode": "copy", "clip_seconds": 0.0}).manifest
    assert {manifest.clip(row).fps for row in range(len(manifest))} == {10.0}
    assert len(manifest) == 4
    assert verify(tmp_path) == []


def test_sound_alone_and_picture_alone_are_data_sets(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_media(src / "a.wav", 2.0, video=None, audio="pcm_s16le")
    write_media(src / "b.mp4", 2.0, audio=None)
    manifest = shard(src, tmp_path / "any", clips={"need": "any"}).manifest
    clips = [manifest.clip(row) for row in range(len(manifest))]
    assert sorted((c.source, c.video_ext, c.audio_ext, c.fps) for c in clips) == [
        ("a.wav", "", "flac", 0.0),
        ("a.wav", "", "flac", 0.0),
        ("b.mp4", "mp4", "", 8.0),
        ("b.mp4", "mp4", "", 8.0),
    ]
    assert verify(tmp_path / "any") == []
    sound = shard(src, tmp_path / "auto")
    assert [done.path for done in sound.skipped] == ["b.mp4"]
    assert sound.manifest.info["clips"] == 2


def test_paths_and_splits_cannot_escape(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_media(src / "ok.mp4")
    write_media(tmp_path / "outside.mp4")
    names = ["ok.mp4", "../outside.mp4", str(tmp_path / "outside.mp4"), "sub/../../outside.mp4"]
    lines = ["file,split,class", *(f"{name},../../evil split,x" for name in names)]
    (src / "labels.csv").write_text("\n".join(lines))
    report = shard(src, out)
    assert [s.name for s in report.manifest.shards] == ["evil_split-000000.tar"]
    assert report.listing.missing == names[1:]
    assert report.manifest.info["clips"] == 1


def test_long_files_span_shards(tmp_path: Path) -> None:
    write_media(tmp_path / "src/long.mp4", 7.0)
    write_media(tmp_path / "src/short.mp4", 2.0)
    manifest = shard(tmp_path / "src", tmp_path / "out", shard_clips=3).manifest
    assert [s.clips for s in manifest.shards] == [3, 3, 3]
    starts = [manifest.clip(row).start for row in range(9) if manifest.clip(row).source == "long.mp4"]
    assert starts == [float(i) for i in range(7)]
    by_size = shard(tmp_path / "src", tmp_path / "small", shard_mb=1).manifest
    assert by_size.fingerprint == manifest.fingerprint


@pytest.mark.parametrize("part", ["video", "audio", "header", "json", "manifest", "summary", "cut", "gone"])
def test_every_flipped_bit_is_found_and_named(
    sharded: Path, tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(sharded, root)
    manifest = Manifest(root)
    clip = manifest.clip(5)
    shard_name = manifest.shards[clip.shard].name
    path = root / {"manifest": "manifest.arrow", "summary": "dataset.json"}.get(part, shard_name)
    data = bytearray(path.read_bytes())
    place = {
        "video": clip.video_offset + clip.video_length // 2,
        "audio": clip.audio_offset + clip.audio_length - 1,
        "header": clip.video_offset - 512 + 2,
        "json": clip.audio_offset + -(-clip.audio_length // 512) * 512 + 512 + 20,
        "manifest": len(data) // 2,
        "summary": data.find(b'"hours"') + 12,
    }.get(part, 0)
    data[place] ^= 1
    if part == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-700] if part == "cut" else data)
    found = verify(root)
    assert found
    assert all(path.name in line for line in found)
    if part in ("video", "audio"):
        assert found == [f"{shard_name}: clip {clip.key} is damaged"]
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(root), "--verify"])
    assert stop.value.code == 1
    assert found[0] in capsys.readouterr().out


def test_the_command_line_sharding_and_inspection(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["shards", str(source), str(out), "--clip-seconds", "1", "--workers", "1"])
    said = capsys.readouterr()
    assert "10 clips" in said.out
    assert "1 x has no video" in said.out
    main(["inspect", str(out), "--json", "--verify"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["problems"] == []
    assert facts["splits"]["train"]["clips"] == 7
    assert facts["labels"] == {"class": {"cat": 5, "dog": 5}}
    main(["inspect", str(out)])
    assert facts["fingerprint"][:40] in capsys.readouterr().out
    main(["shards", str(source), str(out), "--clip-seconds", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["added_files"] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["shards", "nowhere", "out"], 1, "nowhere is not there; name the folder"),
        (["shards", ".", "out", "--fps", "0"], 2, "fps"),
        (["shards", ".", "out", "--sauce", "grid"], 2, "--source"),
        (["shards", ".", "out", "--table", "none.csv"], 1, "none.csv is not there; name the table's file"),
        (["inspect", "nowhere"], 1, "there is no nowhere; name a folder that avpretrain shards wrote"),
        (["inspect", "."], 1, "not a sharded data set"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == status
    assert words in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
