"""What the command line does, as calls."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from avpretrain.api import embed, probe, train
from avpretrain.cli.main import main
from avpretrain.core.errors import UserError
from avpretrain.data.write.cached import as_shards, place_of
from avpretrain.evaluation.probe.run import ProbeConfig
from avpretrain.methods.diffmavil.model import DiffMAViL
from tests.support.tiny_datasets import Spec, make_dataset, tone
from tests.support.tiny_models import tiny

soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    DiffMAViL(tiny()).save_pretrained(folder / "m")
    return folder / "m"


def test_embed_gives_a_row_for_each_file(model: Path, tmp_path: Path) -> None:
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", tone(20 * i, 1.0), 16_000)
    files = [tmp_path / "1.wav", tmp_path / "0.wav"]
    rows = embed(model, files, "audio")
    assert [Path(row.path) for row in rows] == files
    again = embed(str(model), [str(files[1])], "audio")
    np.testing.assert_array_equal(again[0].embedding_D, rows[1].embedding_D)


def test_probe_gives_a_result_with_baselines(model: Path, tmp_path: Path) -> None:
    splits = ["train"] * 8 + ["test"] * 4
    specs = [Spec(seconds=1.0, split=split, label="ab"[i % 2]) for i, split in enumerate(splits)]
    make_dataset(tmp_path / "set", specs)
    outcome = probe(model, str(tmp_path / "set"), ProbeConfig(label="class", num_workers=0))
    assert outcome.result["label"] == "class"
    assert 0 <= outcome.result[outcome.result["metric"]] <= 1
    assert outcome.result["baselines"]


# --- a plain folder of videos ----------------------------------------------------------------------------------------

TINY = {"schedule.samples": 8, "schedule.batch.size": 4, "schedule.batch.multiple": 4, "data.num_workers": 0,
        "run.tracker": "none", "run.preview_clips": 0, "run.checkpoint_every": 8}  # fmt: skip


@pytest.fixture
def videos(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four videos without a table, and an empty cache."""
    monkeypatch.setenv("AVPRETRAIN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted((scenes / "clips").iterdir())[:4]:
        shutil.copy(path, folder)
    return folder


def test_train_takes_a_folder_of_videos(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("tiny_diffmavil", data=videos, out=tmp_path / "run", changes=TINY).finished
    made = place_of(videos)
    assert str(made) in (tmp_path / "run" / "config.yaml").read_text()
    written = (made / "manifest.arrow").stat().st_mtime_ns
    options = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    main(["train", "tiny_diffmavil", "--data", str(videos), "--output-dir", str(tmp_path / "run"), *options])
    assert "0 files added" in capsys.readouterr().out
    assert (made / "manifest.arrow").stat().st_mtime_ns == written, "the folder was sharded once"
    assert place_of(videos.parent / "." / "videos") == made


def test_new_files_are_added_and_others_stay(videos: Path) -> None:
    (root,) = as_shards([videos])
    assert as_shards([root, "http://host/set"]) == (root, "http://host/set"), "what is sharded is taken as it is"
    before = sorted(path.name for path in Path(root).glob("*.tar"))
    shutil.copy(next(videos.iterdir()), videos / "new.mp4")
    assert as_shards([videos]) == (root,)
    assert len(sorted(Path(root).glob("*.tar"))) > len(before)


def test_processes_that_ask_at_once_take_turns(videos: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=note_work, args=(videos, tmp_path / f"{i}.txt")) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("?.txt"))) == 1, "one did the work, the others waited for it"


def note_work(videos: Path, note: Path) -> None:
    def shard(src: Path, out: Path, cfg: object) -> None:
        note.write_text(str(src))
        out.mkdir()
        time.sleep(0.5)

    as_shards([videos], shard)


def test_a_cache_that_can_not_be_written_is_said(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVPRETRAIN_CACHE", str(next(videos.iterdir())))
    with pytest.raises(UserError, match="set AVPRETRAIN_CACHE to a folder with room"):
        as_shards([videos])


def test_a_folder_without_media_is_refused_as_before(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is not a sharded data set"):
        train("tiny_diffmavil", data=tmp_path, out=tmp_path / "run", changes=TINY)
