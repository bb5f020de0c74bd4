"""The start of commands is measured next to torch, and a command that ends otherwise is no measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avpretrain.bench.startup import GOALS, StartUp, measure_startup
from avpretrain.cli.bench import SUBJECTS
from avpretrain.cli.bench.startup import _lines
from avpretrain.cli.main import VERBS, run
from avpretrain.core.errors import UsageError, UserError


def test_the_verb_writes_ratios_to_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("bench", ["startup", "--verbs", "compare", "--repeats", "1", "--out", str(tmp_path / "s.json")])
    values = json.loads((tmp_path / "s.json").read_text())
    assert values["hardware"] and values["versions"]["torch"]
    found = StartUp.from_json(values)
    assert {**values, **found.to_json()} == values
    assert [start.command for start in found.starts] == ["--help", "compare --help", "compare --nonsense"]
    assert [start.kind for start in found.starts] == list(GOALS)
    for start in found.starts:
        assert start.ratio == pytest.approx(start.seconds / found.torch_seconds)
        assert start.cpu_ratio == pytest.approx(start.cpu_seconds / found.torch_cpu_seconds)
        assert 0 < start.cpu_ratio < 1, "a command without torch takes less than torch"
    assert "import torch takes" in capsys.readouterr().out


def test_every_verb_is_measured() -> None:
    measured = {(kind, " ".join(line)) for kind, line in _lines(())}
    for name in [*(verb for verb in VERBS if verb != "bench"), *(f"bench {subject}" for subject in SUBJECTS)]:
        assert ("verb help", f"{name} --help") in measured
        assert any(kind == "usage error" and line.startswith(f"{name} ") for kind, line in measured), name
    with pytest.raises(UsageError, match="no verb 'prob'"):
        _lines(["prob"])


def test_a_command_that_ends_otherwise_is_named() -> None:
    with pytest.raises(UserError, match=r"compare --nonsense' ended with status 2, not 0"):
        measure_startup([("verb help", ["compare", "--nonsense"])], 1)
