"""The scripts in `data/`: each is a verb with the options that its data set wants."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avpretrain.data.sources import SOURCES

SCRIPTS = sorted((Path(__file__).parents[3] / "data").glob("*.py"))


def run(monkeypatch: pytest.MonkeyPatch, script: Path, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, args)])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_has_help(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, script, "--help")
    assert end.value.code in (0, None)
    assert "usage: " in capsys.readouterr().out


def test_a_recipe_for_each_public_set_and_no_others() -> None:
    assert {path.stem for path in SCRIPTS} - {"make_shards", "make_scenes", "make_tracks", "vits_real"} <= set(SOURCES)


def test_the_recipe_of_esc50_makes_a_clip_of_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "esc"
    (root / "meta").mkdir(parents=True)
    (root / "audio").mkdir()
    head = "filename,fold,target,category,esc10,src_file,take\n"
    (root / "meta" / "esc50.csv").write_text(head + "1-1-A-0.wav,1,0,dog,True,1,A\n2-2-A-1.wav,2,1,rooster,True,2,A\n")
    for name in ("1-1-A-0.wav", "2-2-A-1.wav"):
        soundfile.write(
            root / "audio" / name, np.zeros(16_000 * 12, np.float32), 16_000
        )  # longer than a clip by default
    recipe = next(path for path in SCRIPTS if path.stem == "esc50")
    run(monkeypatch, recipe, root, tmp_path / "shards", "--workers", "1")
    assert json.loads((tmp_path / "shards" / "dataset.json").read_text())["clips"] == 2
