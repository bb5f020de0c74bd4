"""Tables, links and file names as people have them: what each cell means, and that no file stops a run."""

from __future__ import annotations

import csv
import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.manifest import Manifest
from avpretrain.data.names import escape_name, printable_name, unescape_name
from avpretrain.data.sources import find_items
from avpretrain.data.sources.base import scan
from avpretrain.data.sources.label_values import Nested, cell_value, label_value, split_cell
from avpretrain.evaluation.setup import random_encoder
from tests.data.sources.test_sources import by_path, lay
from tests.data.write.test_relabel import shard, write_wav
from tests.support.tiny_models import tiny

NAN = float("nan")
odd_names = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps file names that are no UTF-8")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (None, None), (NAN, None), ("", None), ("  ", None), ("null", "null"), ("dog ", "dog"),
        (1, "1"), (1.0, "1"), ("1.0", "1"), (-0.0, "0"), (1.5, "1.5"),
        (10**20, "100000000000000000000"), ("007", "007"),
        (True, "true"), (False, "false"),
        (["dog", "cat"], ["dog", "cat"]), (("a", "a", None, NAN, 2.0), ["a", "2"]), ([], []),
    ],
)  # fmt: skip
def test_a_value_is_no_label_one_class_or_several(value: object, label: object) -> None:
    assert label_value(value) == label


@pytest.mark.parametrize("value", [{"a": 1}, [["a"]], [{"a": 1}], b"bytes", object()])
def test_nested_values_are_no_classes(value: object) -> None:
    assert isinstance(label_value(value), Nested)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("", None), ("NaN", None), ("null", None), ("None", "None"), (" dog", "dog"), ("3.0", "3"), ("1.25", "1.25"),
        ('["dog", "cat"]', ["dog", "cat"]), ("['dog', 'cat']", ["dog", "cat"]), ("[1, 2.0]", ["1", "2"]), ("[]", []),
        ("[dog]", "[dog]"), ("[" * 5000, "[" * 5000), ("dog;cat", "dog;cat"),
    ],
)  # fmt: skip
def test_a_cell_of_text(text: str, label: object) -> None:
    assert cell_value(text) == label


def test_several_classes_in_a_cell() -> None:
    assert split_cell("dog; cat ;dog;;1.0", ";") == ["dog", "cat", "1"]


METADATA = [
    {"file_name": "a.wav", "labels": ["dog", "cat"], "mood": None, "n": 1, "box": {"x": 1}},
    {"file_name": "b.wav", "labels": ["cat", "dog"], "mood": "calm", "n": 1.0, "box": None},
    {"file_name": "c.wav", "labels": ["dog"], "mood": NAN, "n": 2, "box": None},
    {"file_name": "d.wav", "labels": [], "mood": "loud", "n": 3, "box": None},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_lists_nulls_and_numbers_mean_the_same_in_every_table(tmp_path: Path, kind: str) -> None:
    root = lay(tmp_path, {str(row["file_name"]): None for row in METADATA})
    path = root / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\ufeff" + "\r\n".join(json.dumps(row) for row in METADATA))
    elif kind == "parquet":
        rows = [{**row, "n": float(row["n"]), "mood": row["mood"] if row["mood"] == row["mood"] else None}  # type: ignore[arg-type]
                for row in METADATA]  # fmt: skip
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "labels", "mood", "n"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(METADATA)
    listing = find_items("huggingface", root, None)
    assert [item.labels for item in sorted(listing.items, key=lambda item: item.path)] == [
        {"labels": ["dog", "cat"], "n": "1"},
        {"labels": ["cat", "dog"], "mood": "calm", "n": "1"},
        {"labels": ["dog"], "n": "2"},
        {"labels": [], "mood": "loud", "n": "3"},
    ]
    assert listing.notes == (
        [] if kind == "csv" else ["columns whose values are nested are no labels and are left out: 'box'"]
    )


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_common_delimiters_encodings_and_line_ends(tmp_path: Path, mark: str, encoding: str, end: str) -> None:
    rows = [["Label", " File ", "SPLIT"], ["größe", "a.mp4", "Test"], ['"a;b,c|d\te"', "b.mp4", ""]]
    (tmp_path / "labels.csv").write_bytes((end.join(mark.join(row) for row in rows) + end).encode(encoding))
    lay(tmp_path, {"a.mp4": None, "b.mp4": None})
    items = by_path(find_items("folder", tmp_path, None))
    assert (items["a.mp4"].labels, items["a.mp4"].split) == ({"Label": "größe"}, "test")
    assert (items["b.mp4"].labels, items["b.mp4"].split) == ({"Label": "a;b,c|d\te"}, "train")


def test_what_excel_and_pandas_add(tmp_path: Path) -> None:
    lay(tmp_path, {"a.mp4": None, "metadata.tsv": "\tfilename\tfold\n0\ta.mp4\t1.0\n"})
    assert find_items("folder", tmp_path, None).items[0].labels == {"fold": "1"}
    lay(tmp_path, {"other.csv": "sep=;\nfile;class\na.mp4;dog\n"})
    assert find_items("folder", tmp_path, tmp_path / "other.csv").items[0].labels == {"class": "dog"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"labels.csv": "video;class\na.mp4;x\n"}, r"call it file; its columns: 'video', 'class'"),
        ({"labels.csv": "file,class,class\na.mp4,x,y\n"}, "has the column 'class' twice"),
        ({"labels.csv": "file,class\na.mp4,big, red dog\n"}, "row 2: 3 cells under 2 columns; put quotes"),
        ({"labels.csv": "file\n" + "x" * 5000 + ".mp4\n"}, "all 1 that its table names are missing"),
    ],
)
def test_tables_that_are_refused_say_what_they_hold(tmp_path: Path, files: dict[str, str | None], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        find_items("folder", lay(tmp_path, {**files, "a.mp4": None}), None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("source", "lacks"), [("esc50", "category"), ("audioset", "mid")])
def test_tables_of_public_sets_name_the_columns_they_lack(tmp_path: Path, source: Any, lacks: str) -> None:
    audioset = {"eval_segments.csv": "AAAAAAAAAAA, 0, 10, /m/1\n", "class_labels_indices.csv": "index,name\n1,x\n"}
    lay(tmp_path, {"meta/esc50.csv": "filename,fold,esc10\na.wav,1,True\n", "AAAAAAAAAAA.mp4": None, **audioset})
    with pytest.raises(UserError, match=f"has no column '{lacks}'; its columns: '"):
        find_items(source, tmp_path, None)


def test_several_classes_in_csv_are_an_option(tmp_path: Path) -> None:
    table = "file,tags,text\na.mp4,dog;cat,it barks; it runs about the yard\nb.mp4,dog,none\nc.mp4,,x\n"
    lay(tmp_path, {"labels.csv": table, "a.mp4": None, "b.mp4": None, "c.mp4": None})  # fmt: skip
    plain = find_items("folder", tmp_path, None)
    assert plain.items[0].labels["tags"] == "dog;cat"
    assert plain.notes == [
        "the label 'tags' has ';' in 1 of its texts, each taken for one class; if they are several classes: "
        "--multi-label tags"
    ]
    several = find_items("folder", tmp_path, None, ["tags"])
    assert [item.labels.get("tags") for item in several.items] == [["dog", "cat"], ["dog"], None]
    assert several.items[0].labels["text"] == "it barks; it runs about the yard"
    with pytest.raises(UsageError, match="--multi-label tgas: no file has that label; labels: tags, text"):
        find_items("folder", tmp_path, None, ["tgas"])


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root = lay(tmp_path / "videos", {"cat/1.mp4": None, "zoo/lion/3.mp4": None})
    lay(tmp_path, {"elsewhere/dog/2.mp4": None})
    (root / "dog").symlink_to("../elsewhere/dog")
    (root / "a_zoo").symlink_to("zoo")  # by two names
    (root / "cat/up").symlink_to("..")  # a cycle
    (root / "all").symlink_to(tmp_path)  # holds the folder itself
    (root / "broken.mp4").symlink_to("nowhere.mp4")
    (root / "cat/same.mp4").symlink_to("1.mp4")
    os.link(root / "zoo/lion/3.mp4", root / "zoo/lion/hard.mp4")
    listing = find_items("folder", root, None)
    assert [item.path for item in listing.items] == ["cat/1.mp4", "dog/2.mp4", "zoo/lion/3.mp4"]
    assert [item.labels["class"] for item in listing.items] == ["cat", "dog", "zoo"]
    notes = "\n".join(listing.notes)
    assert "2 files are links to others of the set and are taken once, e.g. cat/same.mp4 is cat/1.mp4" in notes
    assert "3 linked folders lead to folders that are reached already, and are not followed again, e.g. a_zoo" in notes
    assert "1 links lead nowhere, e.g. broken.mp4" in notes


def test_tables_in_linked_folders_are_found(tmp_path: Path) -> None:
    lay(
        tmp_path, {"disk/test/metadata.csv": "file_name,class\na.mp4,x\n", "disk/test/a.mp4": None, "root/readme": None}
    )
    (tmp_path / "root/test").symlink_to("../disk/test")
    (item,) = find_items("huggingface", tmp_path / "root", None).items
    assert (item.path, item.split) == ("test/a.mp4", "test")


def test_deep_folders_are_walked(tmp_path: Path) -> None:
    here = tmp_path
    for _ in range(300):
        here = here / "d"
        here.mkdir()
    (here / "a.mp4").write_text("x")
    assert scan(tmp_path).paths == ["d/" * 300 + "a.mp4"]


NAMES = ["plain.wav", "caf\udce9.wav", "caf\\xe9.wav", "two\nlines.wav", 'quo"te,\'s.wav', "\x1b[31mred.wav",
         "é" * 120 + ".wav",
         unicodedata.normalize("NFC", "é.wav"), unicodedata.normalize("NFD", "é.wav")]  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "\\", "\\x", "\x85\u2028", "a\\x41", "日本\udcff語"])
def test_names_come_back_from_their_text(name: str) -> None:
    text = escape_name(name)
    assert unescape_name(text) == name
    assert text.isprintable() and text.encode()
    assert printable_name(name).isprintable()


def test_names_stay_apart() -> None:
    assert len({escape_name(name) for name in NAMES}) == len(NAMES)


@odd_names
def test_files_of_any_name_are_taken_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    for i, name in enumerate(NAMES):
        write_wav(src / "made.wav", i, 1.0)
        (src / "caf\udce9").mkdir(exist_ok=True)
        (src / "made.wav").rename(src / "caf\udce9" / name)
    (src / "bad\udcff\n.wav").write_bytes(b"no sound")
    main(["shards", str(src), str(out), "--workers", "1"])
    said = capsys.readouterr().out
    assert f"{len(NAMES)} clips" in said
    manifest = Manifest(out)
    clips = [manifest.clip(row) for row in range(len(manifest))]
    assert {unescape_name(clip.source) for clip in clips} == {f"caf\udce9/{name}" for name in NAMES}
    assert len({clip.key for clip in clips}) == len(NAMES)
    assert {clip.label_dict["class"] for clip in clips} == {"caf\\xe9"}
    for name in ("sources.csv", "skipped.csv"):
        lines = (out / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) == {"sources.csv": len(NAMES) + 2, "skipped.csv": 2}[name]
        assert all(line.isprintable() for line in lines)
    assert (out / "skipped.csv").read_text().splitlines()[1].startswith("bad\\xff\\x0a.wav,")
    before = (out / "dataset.json").read_bytes()
    assert shard_again(src, out) == 0
    assert (out / "dataset.json").read_bytes() == before


def shard_again(src: Path, out: Path) -> int:
    from avpretrain.data.write.shards import ShardConfig, make_shards

    return make_shards(src, out, ShardConfig(workers=1)).added


def test_a_table_may_spell_accents_the_other_way(tmp_path: Path) -> None:
    stored = unicodedata.normalize("NFD", "é.mp4")
    lay(tmp_path, {"labels.csv": f"file\n{unicodedata.normalize('NFC', 'é.mp4')}\n", stored: None})
    assert [item.path for item in find_items("folder", tmp_path, None).items] == [stored]


def test_several_classes_from_csv_to_probe_and_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out, model = tmp_path / "src", tmp_path / "out", tmp_path / "run/model"
    lines = ["file;tags;split"]
    for i in range(24):
        write_wav(src / f"{i}.wav", (i % 2) * 60 + i // 8, 1.0)
        tags = ["low|all", "high|all", "low", "high"][i % 4]
        lines.append(f"{i}.wav;{tags};{'test' if i >= 16 else 'train'}")
    (src / "labels.csv").write_text("\n".join(lines))
    main(["shards", str(src), str(out), "--multi-label", "tags", "--separator", "|", "--workers", "1"])
    assert Manifest(out).info["labels"]["tags"] == ["all", "high", "low"]
    random_encoder(tiny(), seed=3).save_pretrained(model)
    (tmp_path / "run/run.json").write_text("{}")
    common = [str(tmp_path / "run"), str(out), "--label", "tags", "--num-workers", "0", "--json", "--no-baselines"]
    capsys.readouterr()
    main(["probe", *common])
    result = json.loads(capsys.readouterr().out)
    assert (result["metric"], result["classes"]) == ("map", ["all", "high", "low"])
    assert result["map"] > 0.6
    main(["finetune", *common, "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8"])
    assert json.loads(capsys.readouterr().out)["metric"] == "map"


def test_old_labels_that_were_text_are_mended_by_sharding_again(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    for i in range(2):
        write_wav(src / f"{i}.wav", i, 1.0)
    rows = "file,tags\n0.wav,dog;cat\n1.wav,cat\n"
    (src / "labels.csv").write_text(rows)
    shard(src, out)
    report = shard(src, out, multi_label=("tags",))
    assert report.revision.relabelled == ["0.wav", "1.wav"]
    assert report.manifest.info["labels"] == {"tags": ["cat", "dog"]}
