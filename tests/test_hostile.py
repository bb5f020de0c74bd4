"""What a stranger's data sets and weights may do: nothing but be refused, or lose the clips that are bad, in a line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from avpretrain.cli.main import main
from avpretrain.methods.diffmavil.model import DiffMAViL
from tests.support.hostile import make
from tests.support.hostile_data import DATA
from tests.support.hostile_models import FOREIGN, MODELS, REASONS, vit
from tests.support.media_files import write_media
from tests.support.runs import write_probe, write_run
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny

SECONDS = 10.0
SLACK = 3.0
"""How many times slower a loaded machine may be."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and endless files as Linux has them")


def names_below(folder: Path) -> set[str]:
    return {f"{root}/{name}" for root, folders, files in os.walk(folder) for name in (*folders, *files)}


def opened(what: str, folder: Path, own: Path) -> dict[str, Any]:
    """What came of each folder in a process of its own, which must leave nothing behind, in `own` least of all."""
    before = names_below(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "HOME": str(own)}
    command = [sys.executable, "-m", "tests.support.hostile", what, str(folder), str(own / "found.json")]
    done = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert names_below(folder) == before
    assert names_below(own) == {f"{own}/found.json"}, "nothing is written outside"
    found: dict[str, Any] = json.loads((own / "found.json").read_text())
    return found


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    specs = [Spec(seconds=0.5, size=(32, 40)) for _ in range(8)] + [Spec(seconds=0.5, size=(32, 40), split="test")] * 4
    good = make_dataset(folder / "good", specs)
    make(good, DATA, folder)
    return opened("data", folder, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    DiffMAViL(tiny()).save_pretrained(folder / "good")
    make(folder / "good", MODELS, folder)
    for name, write in FOREIGN.items():
        write(folder / name)
    torch.save({"model": vit()}, folder / "mae good.pth")
    return opened("models", folder, tmp_path_factory.mktemp("own"))


def check_line(name: str, found: dict[str, Any]) -> None:
    assert "fault" not in found, f"{name}: {found['fault']}"
    assert found["seconds"] < SECONDS * SLACK, name
    if found["error"] is not None:
        assert len(found["error"]) < 700 and found["error"].isprintable(), found["error"]


def test_there_are_as_many_as_promised() -> None:
    assert len(DATA) >= 50 and len(MODELS) + len(FOREIGN) >= 30


def test_good_ones_are_good(data: dict[str, Any], models: dict[str, Any]) -> None:
    assert data["good"]["error"] is None and data["good"]["clips"] == 12 and not data["good"]["bad"]
    assert models["good"]["error"] is None and models["mae good.pth"]["error"] is None


@pytest.mark.parametrize("name", DATA)
def test_data_sets(data: dict[str, Any], name: str) -> None:
    expected, found = DATA[name][1], data[name]
    check_line(name, found)
    if expected.startswith("!"):
        assert found["error"] is not None and expected[1:] in found["error"], found
        return
    assert found["error"] is None, found
    count, _, reason = expected.partition(" ")
    assert len(found["bad"]) == int(count or 0), found
    assert all(reason in line and line.isprintable() for line in found["bad"]), found
    assert found["clips"] == 12, "the others are as they were"


@pytest.mark.parametrize("name", [*MODELS, *FOREIGN])
def test_models(models: dict[str, Any], name: str) -> None:
    found = models[name]
    check_line(name, found)
    assert found["error"] is not None, "it was taken for good"
    expected = [MODELS[name][1]] if name in MODELS else [name, REASONS.get(name, "")]
    assert all(part in found["error"] for part in expected), found


NASTY = "\x1b[2J\x1b]0;evil\x07[red]<script>alert(1)</script>\u202e"
NAME = NASTY.replace("/", "")
"""The same for a file."""


# --- by the command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose labels, split and names would write to the terminal and into the page."""
    numbered = [(split, i) for split in ("train", "test") for i in range(8)]
    specs = [Spec(seconds=0.5, size=(32, 40), label=f"{NASTY}{i % 2}", split=split) for split, i in numbered]
    return make_dataset(tmp_path_factory.mktemp("labels") / "set", specs, per_shard=8, name=f"set {NASTY}")


def assert_plain(said: str) -> None:
    assert all(c.isprintable() or c in "\n\t" for c in said), [c for c in said if not c.isprintable() and c != "\n"][:5]


@pytest.mark.parametrize("verb", ["inspect", "probe", "retrieve"])
def test_terminals_get_no_control_characters(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    model = DiffMAViL(tiny())
    model.save_pretrained(tmp_path / "m")
    options = {
        "inspect": [str(labelled)],
        "probe": [str(tmp_path / "m"), str(labelled), "--label", "class", "--modality", "audio", "--num-workers", "0"],
        "retrieve": [str(tmp_path / "m"), str(labelled), "--num-workers", "0"],
    }
    main([verb, *options[verb]])
    said = capsys.readouterr()
    assert_plain(said.out + said.err)


@pytest.fixture(scope="module")
def nasty_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, labels, runs and weights whose names would write to the terminal: each verb reads one of them."""
    folder = tmp_path_factory.mktemp("nasty")
    (folder / "videos").mkdir()
    for i in range(2):
        write_media(folder / "videos" / f"{NAME}{i}.mp4", seconds=1.0)
    (folder / "videos" / f"{NAME}.wav").write_bytes(b"no audio")
    rows = [{"path": f"{NAME}{i}.mp4", "split": split, NAME: f"{NAME}{i}"} for i, split in enumerate(("train", "test"))]
    (folder / "labels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name in ("one", "other"):
        run = write_run(folder / name, name=f"{name} {NASTY}", pictures=0)
        write_probe(run, 0.5, label=NAME)
        facts = json.loads((run / "run.json").read_text())
        facts["data"].update(clips=3, split=f"[x](http://127.0.0.1) {NASTY}", fingerprint=NASTY)
        (run / "run.json").write_text(json.dumps(facts))
        DiffMAViL(tiny()).save_pretrained(run / "model")
    state = {**vit(), f"head.{NASTY}": torch.zeros(1)}
    torch.save({"model": state}, folder / f"{NAME}.pth")
    (folder / "broken.mp4").write_bytes(b"")
    (folder / "broken.mp4").rename(folder / f"{NAME}.mp4")
    return folder


@pytest.mark.parametrize("verb", ["shards", "compare", "report", "export", "embed", "import"])
def test_no_verb_prints_control_characters(
    nasty_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    one, other, videos = nasty_files / "one", nasty_files / "other", nasty_files / "videos"
    result = f"eval/linear_probe_{NAME}_audio.json"
    good = f"{NAME}0.mp4"
    options: dict[str, list[object]] = {
        "shards": [videos, tmp_path / "set", "--table", nasty_files / "labels.jsonl", "--workers", "1"],
        "compare": [one / result, other / result],
        "report": [one, other, "--out", tmp_path / "page.html"],
        "export": [one, tmp_path / "exported"],
        "embed": [one / "model", videos / good, nasty_files / f"{NAME}.mp4", "--out", tmp_path / "v.npz"],
        "import": [nasty_files / f"{NAME}.pth", tmp_path / "model", "--format", "mae", "--into", "video"],
    }
    with contextlib.suppress(SystemExit):
        main([verb, *map(str, options[verb])])
    said = capsys.readouterr()
    assert_plain(said.out + said.err)
    assert "Traceback" not in said.err and "report it" not in said.err, said.err
    if verb != "compare":  # what the others print names what they read
        assert "\\x1b[2J" in said.out + said.err or verb in ("report", "export"), said
    if verb == "export":
        card = (tmp_path / "exported" / "README.md").read_text()
        assert_plain(card)
        assert "<script>" not in card and "[x](" not in card and "\\[x\\](http" in card
    if verb == "report":
        assert "<script>alert" not in (tmp_path / "page.html").read_text()


def test_refusals_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = make_dataset(tmp_path / "good", [Spec(seconds=0.5, size=(32, 40)) for _ in range(4)])
    DiffMAViL(tiny()).save_pretrained(tmp_path / "model")
    make(good, {name: DATA[name] for name in ("shard name above", "summary deep", "manifest a pipe")}, tmp_path)
    make(tmp_path / "model", {name: MODELS[name] for name in ("width huge", "weights not numbers")}, tmp_path)
    commands = [["inspect", str(tmp_path / name)] for name in ("shard name above", "summary deep", "manifest a pipe")]
    out = tmp_path / "o.npz"
    commands += [
        ["embed", str(tmp_path / m), str(good), "--out", str(out)] for m in ("width huge", "weights not numbers")
    ]
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code in (1, 2)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("avpretrain: ") and "Traceback" not in lines[0]
    assert not out.exists()


def test_the_page_escapes_what_strangers_wrote(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", name="<script>alert(1)</script>")
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
