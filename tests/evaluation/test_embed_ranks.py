"""Embedding files by two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avpretrain.cli.main import run
from avpretrain.evaluation.setup import random_encoder
from tests.support.tiny_datasets import SAMPLE_RATE, tone
from tests.support.tiny_models import tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(tmp_path: Path) -> None:
    for i in range(5):
        soundfile.write(tmp_path / f"{i}.flac", tone(i, 0.5 + i), SAMPLE_RATE)
    (tmp_path / "broken.flac").write_bytes(b"no sound")
    random_encoder(tiny(), seed=1).save_pretrained(tmp_path / "model")
    names = ("3.flac", "0.flac", "broken.flac", "4.flac", "1.flac", "2.flac")
    args = [str(tmp_path / "model"), *(str(tmp_path / name) for name in names), "--per", "window", "--out"]
    run("embed", [*args, str(tmp_path / "one.npz")])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
               str(ROOT / "eval" / "embed.py"), *args, str(tmp_path / "two.npz")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out") == 1
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert [Path(path).name for path in dict.fromkeys(one["path"].tolist())] == [n for n in names if n != "broken.flac"]
    for column in ("path", "modality", "start", "end"):
        assert one[column].tolist() == two[column].tolist()
    np.testing.assert_allclose(one["embedding"], two["embedding"], atol=1e-5)
