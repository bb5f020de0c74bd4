"""Pictures of evaluations in the report."""

from __future__ import annotations

import shutil
from pathlib import Path

from avpretrain.report.comparison import Comparison
from avpretrain.report.write import render
from tests.support.runs import write_run


def test_pictures_of_evaluations_are_shown(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / kind, f"tiny_{kind}", name=kind) for kind in ("mavil", "diffmavil")]
    (folders[0] / "eval").mkdir(exist_ok=True)
    before = render(Comparison.of(folders))
    assert "Evaluations in pictures" not in before
    drawn = next((folders[0] / "reconstructions").glob("*.png"))
    for name in ("linear_probe_class_audio-confusion", "retrieval_test-examples"):
        shutil.copy(drawn, folders[0] / "eval" / f"{name}.png")
    page = render(Comparison.of(folders))
    assert page.count("<img") == before.count("<img") + 2
    assert "linear probe class audio, confusion by mavil" in page and "retrieval test, examples by mavil" in page
