"""Machines that do not share the folder of a run: said at the start, and refused in one line at resume."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from avpretrain.api import train
from avpretrain.core.errors import UserError
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.training import run
from tests.support.ranks import run_ranks, said
from tests.support.tiny_runs import tiny_config


def test_ranks_that_do_not_share_the_run(data: Path, tmp_path: Path) -> None:
    cfg = dataclasses.replace(tiny_config(data.resolve(), tmp_path), output_dir="run")
    for part in ("begins", "resumes"):
        out = tmp_path / part
        assert run_ranks(out, on_a_machine_of_its_own, cfg, tmp_path, part == "resumes") == [0, 0], said(out)
    first, second = ((tmp_path / "begins" / f"rank{rank}.txt").read_text() for rank in range(2))
    assert "warning: rank 1 on " in first
    assert "does not see run (1 ranks do not): checkpoints lie on the first machine alone" in first
    assert "warning" not in second


def on_a_machine_of_its_own(cfg: TrainConfig, root: Path, resumes: bool) -> None:
    """Trains in a working folder of the rank's own."""
    run.SHARING_SECONDS = 0.5
    own = root / f"machine{os.environ['RANK']}"
    own.mkdir(exist_ok=True)
    os.chdir(own)
    if resumes:
        with pytest.raises(
            UserError, match=r"rank 1 on \S+ does not see run/checkpoints/0+4\d, .* that all machines share"
        ):
            train(cfg)
    else:
        assert train(cfg, stop_at=40).progress.seen >= 40
