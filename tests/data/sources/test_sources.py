"""Each data set's official layout, in small: what is found, with which labels and split, and what is missing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from avpretrain.core.errors import UserError
from avpretrain.data.media import Segment
from avpretrain.data.sources import SOURCES, Item, Listing, SourceName, find_items
from avpretrain.data.write.shards import ShardConfig, make_shards
from tests.support.media_files import write_media
from tests.support.real_data import REAL_DATA, needs_real_data


def lay(root: Path, files: dict[str, str | None]) -> Path:
    """Writes files; None = some bytes that nobody reads here."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("media" if text is None else text)
    return root


def by_path(listing: Listing) -> dict[str, Item]:
    return {item.path: item for item in listing.items}


AUDIOSET_LIST = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=3, num_segs=3, num_unique_labels=4, num_positive_labels=5
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
Yaaaaaaaaab, 30.000, 40.000, "/m/03m9d0z"
-zzzzzzzzzz, 5.000, 15.000, "/m/068hy"
"""
CLASSES = 'index,mid,display_name\n0,/m/068hy,"Domestic animals, pets"\n1,/m/07q6cd_,Squeak\n'


def test_audioset(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "csv/balanced_train_segments.csv": AUDIOSET_LIST,
            "csv/eval_segments.csv": AUDIOSET_LIST.split("--4g")[0] + 'bbbbbbbbbbb, 0.000, 10.000, "/m/03m9d0z"\n',
            "csv/class_labels_indices.csv": CLASSES,
            "balanced/Y--4gqARaEJE.wav": None,
            "balanced/--4gqARaEJE_0-10.mp4": None,
            "balanced/Yaaaaaaaaab_30000.flac": None,
            "eval/bbbbbbbbbbb.mkv": None,
            "eval/ccccccccccc.mkv": None,
        },
    )
    listing = find_items("audioset", root, None)
    items = by_path(listing)
    assert listing.missing == ["-zzzzzzzzzz"]
    assert listing.present == 0.75
    assert listing.ignored == 2  # the sound of a clip whose video is there, and a clip of no list
    assert set(items) == {"balanced/--4gqARaEJE_0-10.mp4", "balanced/Yaaaaaaaaab_30000.flac", "eval/bbbbbbbbbbb.mkv"}
    assert items["balanced/--4gqARaEJE_0-10.mp4"].labels == {"class": ["Domestic animals, pets", "Squeak"]}
    assert items["balanced/Yaaaaaaaaab_30000.flac"].segment == Segment(30.0, 40.0)
    assert {item.split for item in listing.items} == {"balanced_train", "eval"}


def test_vggsound(tmp_path: Path) -> None:
    table = (
        '---g-f_I2yQ,1,"people marching, outdoors",test\naaaaaaaaaaa,30,dog barking,train\nbbbbbbbbbbb,7,rain,train\n'
    )
    root = lay(
        tmp_path,
        {
            "vggsound.csv": table,
            "video/---g-f_I2yQ_000001.mp4": None,
            "video/aaaaaaaaaaa.mp4": None,
            "video/stray_000001.mp4": None,
        },
    )
    listing = find_items("vggsound", root, None)
    assert listing.missing == ["bbbbbbbbbbb_000007"]
    assert listing.ignored == 1
    items = by_path(listing)
    first = items["video/---g-f_I2yQ_000001.mp4"]
    assert (first.split, first.labels) == ("test", {"class": "people marching, outdoors"})
    assert items["video/aaaaaaaaaaa.mp4"].segment == Segment(30.0, 40.0)


ESC = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
1-100038-A-14.wav,2,14,chirping_birds,False,100038,A
5-9032-A-0.wav,5,0,dog,True,9032,A
"""


def test_esc50_and_esc10(tmp_path: Path) -> None:
    root = lay(tmp_path, {"meta/esc50.csv": ESC, "audio/1-100032-A-0.wav": None, "audio/1-100038-A-14.wav": None})
    whole, part = find_items("esc50", root, None), find_items("esc10", root, None)
    assert [item.path for item in whole.items] == ["audio/1-100032-A-0.wav", "audio/1-100038-A-14.wav"]
    assert whole.missing == part.missing == ["5-9032-A-0.wav"]
    assert [item.labels for item in part.items] == [{"class": "dog", "fold": "1"}]
    assert {item.license for item in whole.items} == {"CC BY 3.0", "CC BY-NC 3.0"}


def test_speech_commands(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            "testing_list.txt": "bed/0a_nohash_0.wav\nbed/gone_nohash_0.wav\n",
            "validation_list.txt": "cat/1b_nohash_0.wav\n",
            "bed/0a_nohash_0.wav": None,
            "cat/1b_nohash_0.wav": None,
            "cat/2c_nohash_1.wav": None,
            "_background_noise_/rain.wav": None,
            "LICENSE": "text",
        },
    )
    listing = find_items("speechcommands", root, None)
    assert {item.path: item.split for item in listing.items} == {
        "bed/0a_nohash_0.wav": "test",
        "cat/1b_nohash_0.wav": "val",
        "cat/2c_nohash_1.wav": "train",
    }
    assert listing.items[-1].labels == {"class": "cat", "speaker": "2c"}
    assert (listing.missing, listing.ignored) == (["bed/gone_nohash_0.wav"], 1)


def test_fsdd(tmp_path: Path) -> None:
    names = ["0_george_0.wav", "0_george_4.wav", "0_george_5.wav", "7_lucas_0.wav"]
    listing = find_items("fsdd", lay(tmp_path, {f"recordings/{name}": None for name in names}), None)
    assert [item.split for item in listing.items] == ["test", "test", "train", "test"]
    assert listing.items[3].labels == {"class": "7", "speaker": "lucas"}
    assert listing.missing == [f"0_george_{i}.wav" for i in (1, 2, 3)]


def test_grid(tmp_path: Path) -> None:
    alignment = "0 23750 sil\n23750 29500 bin\n29500 34000 blue\n"
    root = lay(
        tmp_path,
        {
            "s1/bbaf2n.mpg": None,
            "s1/align/bbaf2n.align": alignment,
            "s1/align/swwzzn.align": alignment,
            "s34/video/pgixzs.mpg": None,
            "align/s34/pgixzs.align": alignment,
            "s34/notes.mpg": None,
        },
    )
    listing = find_items("grid", root, None)
    first, second = listing.items
    assert first.labels == {
        "command": "bin",
        "color": "blue",
        "preposition": "at",
        "letter": "f",
        "digit": "2",
        "adverb": "now",
        "speaker": "s1",
        "words": "0.000-0.950:sil;0.950-1.180:bin;1.180-1.360:blue",
    }
    assert (second.labels["speaker"], second.labels["digit"], second.labels["adverb"]) == ("s34", "0", "soon")
    assert "words" in second.labels
    assert (listing.missing, listing.ignored) == (["s1/swwzzn"], 1)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_hugging_face_folder(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"file_name": "a.mp4", "text": "a dog", "n": 3},
        {"file_name": "gone.mp4", "text": "x"},
    ]
    csv_text = "file_name,text,n\na.mp4,a dog,3\ngone.mp4,x,\n"
    text = csv_text if kind == "csv" else "\n".join(json.dumps(row) for row in rows)
    root = lay(tmp_path, {f"data/{s}/metadata.{kind}": text for s in ("train", "test")})
    lay(tmp_path, {"data/train/a.mp4": None, "data/test/a.mp4": None})
    listing = find_items("huggingface", root, None)
    assert {item.path: item.split for item in listing.items} == {"data/train/a.mp4": "train", "data/test/a.mp4": "test"}
    assert listing.items[0].labels == {"text": "a dog", "n": "3"}
    assert listing.missing == ["gone.mp4"] * 2


def test_folder_with_a_table(tmp_path: Path) -> None:
    table = "\ufefffilename,split,Licence,digit,licence\na/x.mp4,validation,,7,CC0\nb.mp4,,,8,\nno.mp4,test,,9,\n"
    root = lay(tmp_path, {"labels.csv": table, "a/x.mp4": None, "b.mp4": None, "unlisted.mp4": None, "c.txt": None})
    listing = find_items("folder", root, None)
    assert listing.items == [
        Item(path="a/x.mp4", labels={"digit": "7"}, split="val", license="CC0"),
        Item(path="b.mp4", labels={"digit": "8"}, split="train"),
    ]
    assert (listing.missing, listing.ignored) == (["no.mp4"], 1)


def test_folder_without_a_table(tmp_path: Path) -> None:
    names = ["train/dog/1.mp4", "Testing/cat/deep/2.WAV", "3.mp4", "bird/4.mp4", "read.me", ".hidden/5.mp4"]
    listing = find_items("folder", lay(tmp_path, dict.fromkeys(names)), None)
    assert {i.path: (i.split, i.labels) for i in listing.items} == {
        "train/dog/1.mp4": ("train", {"class": "dog"}),
        "Testing/cat/deep/2.WAV": ("test", {"class": "cat"}),
        "3.mp4": ("train", {}),
        "bird/4.mp4": ("train", {"class": "bird"}),
    }
    assert listing.ignored == 1


@pytest.mark.parametrize(
    ("source", "files", "words"),
    [
        ("folder", {"labels.csv": "name,class\na.mp4,x\n", "a.mp4": None}, "no column that names the file"),
        ("folder", {"labels.csv": "file,class\na.mp4,x\na.mp4,y\n", "a.mp4": None}, "names a.mp4 twice"),
        ("folder", {"labels.csv": "file,class\na.mp4,x\n"}, "all 1 that its table names are missing, such as a.mp4"),
        ("folder", {"readme.txt": None}, "known by their extension"),
        ("audioset", {"a.mp4": None}, "no \\*_segments.csv"),
        ("vggsound", {"vggsound.csv": "id,start,label\n", "a.mp4": None}, "is not 'id,start,label,split'"),
        ("esc50", {"a.wav": None}, "no meta/esc50.csv"),
        ("speechcommands", {"bed/a.wav": None}, "no testing_list.txt"),
        ("huggingface", {"a.mp4": None}, "no metadata.csv"),
        ("huggingface", {"metadata.jsonl": "{", "a.mp4": None}, "line 1: not JSON"),
        ("grid", {"a.mp4": None}, "no files of source 'grid'"),
    ],
)
def test_what_is_no_such_data_set_says_so(
    tmp_path: Path, source: SourceName, files: dict[str, str | None], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        find_items(source, lay(tmp_path, files), None)
    assert "\n" not in str(error.value)


def test_every_source_can_be_named() -> None:
    assert set(SOURCES) == set(SourceName.__args__)


def test_segments_missing_files_and_labels_reach_the_shards(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_media(src / "video/aaaaaaaaaaa.mp4", 14.0)
    lay(src, {"vggsound.csv": "aaaaaaaaaaa,2,tone,train\nbbbbbbbbbbb,0,rain,test\n"})
    report = make_shards(src, tmp_path / "out", ShardConfig(source="vggsound", workers=1))
    (clip,) = [report.manifest.clip(row) for row in range(len(report.manifest))]
    assert (clip.start, clip.duration, clip.label_dict) == (2.0, 10.0, {"class": "tone"})
    assert report.manifest.info["source"] == {"name": "vggsound", "files": 1, "missing": 1}
    assert (tmp_path / "out/missing.csv").read_text() == "name\nbbbbbbbbbbb_000000\n"


@needs_real_data
@pytest.mark.parametrize(
    ("pack", "splits"),
    [
        ("grid_av", {"train": 800, "val": 100, "test": 100, "test_unseen_speaker": 10}),
        ("esc10", {"train": 400}),
        ("fsdd", {"train": 2700, "test": 300}),
        ("speechcommands3", {"train": 4112, "val": 554, "test": 522}),
        ("av_misc", {"train": 5}),
    ],
)
def test_real_packs_are_complete(pack: str, splits: dict[str, int]) -> None:
    listing = find_items("folder", REAL_DATA / pack, None)
    assert Counter(item.split for item in listing.items) == splits
    assert listing.missing == []


@needs_real_data
def test_real_videos_are_sharded(tmp_path: Path) -> None:
    report = make_shards(REAL_DATA / "av_misc", tmp_path / "out", ShardConfig(workers=2))
    assert (report.manifest.info["clips"], report.skipped) == (5, [])
    assert -10 < report.manifest.info["log_mel"]["mean"] < -2
