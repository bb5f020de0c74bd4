"""What the command line does, as calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avpretrain.api import embed, probe
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
