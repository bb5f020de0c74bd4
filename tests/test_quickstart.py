"""The quickstart notebook runs from top to bottom, and is stored without what one machine made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 8
    assert [cell["id"] for cell in cells if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the extra 'docs' is not installed")
    pytest.importorskip("ipykernel", reason="the extra 'docs' is not installed")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as many as the processes of a test run get
    book: Any = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(book, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"}
    shown = [data for row in outputs.values() for output in row if (data := output.get("data"))]
    assert sum("image/png" in data for data in shown) == 3
    assert sum("<audio" in data.get("text/html", "") for data in shown) == 2
    printed = "".join(output.text for row in outputs.values() for output in row if output.output_type == "stream")
    assert all(name in printed for name in ("encoder", "random_encoder", "mean_log_mel", "majority_class"))
    run = tmp_path / "quickstart" / "run"
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["seen"] >= 384
