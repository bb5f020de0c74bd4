from __future__ import annotations

import json
from pathlib import Path

import pytest

from avpretrain.cli.main import main


@pytest.mark.slow
def test_the_demo_runs_from_scenes_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", str(tmp_path / "demo"), "--clips", "56"])
    said = capsys.readouterr().out
    assert f"report: {tmp_path / 'demo' / 'report.html'}" in said
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["seconds"] > 0
    table = said.splitlines()
    start = next(i for i, line in enumerate(table) if line.startswith("run "))
    names = [line.split()[0] for line in table[start : start + 5]]
    assert names == ["run", "mavil", "diffmavil", "best", "diffmavil"]
    for name in ("mavil", "diffmavil"):
        assert (tmp_path / "demo" / name / "eval" / "linear_probe_class_audio.json").exists()
