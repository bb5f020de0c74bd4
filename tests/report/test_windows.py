"""Average precision by past and future: the map, the table, and a damaged result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avpretrain.core.errors import UserError
from avpretrain.methods.speaker.config import SpeakerModelConfig, with_fusion
from avpretrain.methods.speaker.results import RESULT_NAME, WindowResult, make_result, read_result, write_result
from avpretrain.report.comparison import Comparison
from avpretrain.report.page import Figures, Table
from avpretrain.report.windows import HeatMap, windows
from avpretrain.report.write import render
from tests.support.runs import write_run


def measured(folder: Path, value: float, seed: int = 0, **fusion: object) -> Path:
    run = write_run(folder, samples=320, accuracy=None, pictures=0, seed=seed)
    cfg = with_fusion(SpeakerModelConfig(), **fusion)
    write_result(run, make_result(cfg, "heads", seed, 1000, value, 500, 100))
    return run


def test_results_become_a_map_and_a_table(tmp_path: Path) -> None:
    runs = [
        measured(tmp_path / "a", 0.6, past=2, future=0),
        measured(tmp_path / "b", 0.7, seed=1, past=2, future=0),
        measured(tmp_path / "c", 0.9, seed=2, past=-1, future=4),
        measured(tmp_path / "d", 0.8, seed=3, kind="gru"),
    ]
    comparison = Comparison.of(runs)
    section = windows(comparison)
    assert section is not None
    figures, table = section.blocks
    assert isinstance(figures, Figures) and isinstance(table, Table)
    drawn = figures.items[0].drawing
    assert isinstance(drawn, HeatMap)
    assert (drawn.rows, drawn.columns) == (["all", "2"], ["0", "4"])
    assert drawn.values == [[None, 0.9], [pytest.approx(0.65), None]]
    rows = {(row[0].text, row[2].text, row[3].text): [cell.text for cell in row] for row in table.rows}
    assert rows["banded", "5", "0"][4:8] == ["0 ms", "1,000", "2", "0.6500"]
    assert rows["banded", "all", "4"][4] == "160 ms"
    assert rows["gru", "all", "0"][7] == "0.8000"
    page = render(comparison)
    assert ">0.650</text>" in page and "Active speaker detection" in page


def test_runs_without_results_have_no_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", samples=320, pictures=0)
    assert windows(Comparison.of([run])) is None
    write_result(run, make_result(SpeakerModelConfig(), "heads", 0, 1000, 0.5, 10, 5))
    found = read_result(run)
    assert found is not None and WindowResult.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match="'kind' is 'lstm'"):
        WindowResult.from_json({**found.to_json(), "kind": "lstm"})
    assert windows(Comparison.of([run])) is not None
    (run / RESULT_NAME).write_text('{"task": "speakers"}')
    with pytest.raises(UserError, match="is no result of an active speaker detector"):
        windows(Comparison.of([run]))
    with pytest.raises(UserError, match="is no result of an active speaker detector"):
        read_result(run)


def test_what_the_verb_measured_of_a_run_is_shown_with_the_window_of_its_config(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", samples=320, accuracy=None, pictures=0)
    (run / "config.yaml").write_text("name: a\nmethod: speaker\nmodel: {fusion: {past: 3, future: 1}}\nseed: 4\n")
    (run / "eval").mkdir(exist_ok=True)
    values = {"task": "active_speaker", "split": "val", "data": "/data/heads", "score": {"rows": 9, "positives": 3}}
    values["score"] = {**values["score"], "average_precision": 0.75}  # type: ignore[dict-item]
    (run / "eval" / "speakers_val_heads.json").write_text(json.dumps(values))
    section = windows(Comparison.of([run]))
    assert section is not None
    (table,) = section.blocks
    assert isinstance(table, Table)
    assert [cell.text for cell in table.rows[0]][:5] == ["banded", "heads, val", "7", "1", "40 ms"]
    assert table.rows[0][7].text == "0.7500"
