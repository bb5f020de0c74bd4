"""A matrix of language models: cells are trained, measured by their perplexity, and put into the same table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from avpretrain.ablate.kinds import cost_of
from avpretrain.ablate.matrix import load_ablation
from avpretrain.ablate.summary import Summary, table
from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError
from tests.support.texts import VALUES, write_texts


def write_matrix(folder: Path, **more: Any) -> Path:
    """Two arms of a tiny language model, one seed."""
    base = {**VALUES, "data": {"vocabulary": 300}, "schedule": {"samples": 32, "batch": {"size": 8}}, "average": 1}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    values = {
        "base": str(folder / "base.yaml"), "seeds": [0],
        "variants": {"layerwise": {}, "uniform": {"model.scaling": {"alpha": [0.75, 0.75], "beta": [2.25, 2.25]}}},
        **more,
    }  # fmt: skip
    (folder / "matrix.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "matrix.yaml"


def test_cells_are_trained_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix, texts, out = write_matrix(tmp_path), write_texts(tmp_path / "texts"), tmp_path / "out"
    command = ["ablate", str(matrix), "--data", str(texts), "--out", str(out), "--only", "layerwise", "--debug"]
    main(command)
    record = json.loads((out / "cells" / "layerwise-s0.json").read_text())
    (evaluation,) = record["evaluations"]
    assert evaluation["metric"] == "bits_per_byte" and evaluation["label"] == "val"
    measured = json.loads((out / "runs" / "layerwise-s0" / "eval" / "perplexity.json").read_text())
    assert evaluation["value"] == measured["bits_per_byte"] and measured["whole"]
    assert record["flops"]["total"] == record["flops"]["per_clip"] * 32 and record["training"]["losses"]["nll"] > 0
    summary = json.loads((out / "summary.json").read_text())
    headings, row = table(Summary.from_json(summary))
    assert headings[2] == "FLOPs a window" and headings[6] == "windows/s"
    assert dict(zip(headings, row, strict=True))["perplexity, val"] == f"{measured['bits_per_byte']:.4f} bits per byte"
    assert (out / "report.html").is_file()
    before = (out / "cells" / "layerwise-s0.json").stat().st_mtime_ns
    main(command)
    assert "1 done before" in capsys.readouterr().err
    assert (out / "cells" / "layerwise-s0.json").stat().st_mtime_ns == before


def test_the_plan_says_what_each_arm_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = write_matrix(tmp_path)
    main(["ablate", str(matrix), "--dry-run", "--optim.lr", "0.5", "--debug"])
    said = capsys.readouterr().out
    assert "FLOPs a window" in said and "uniform" in said and "layerwise" in said
    ablation = load_ablation(str(matrix))
    costs = [cost_of(ablation.config(variant), 32) for variant in ablation.variants]
    assert [cost.steps for cost in costs] == [4, 4] and costs[0].total == 32 * costs[0].per_clip


def test_the_arms_of_the_preset_match() -> None:
    ablation = load_ablation("ablation_widths", "widths_tiny")
    assert ablation.baseline.name == "uniform"
    costs = {variant.name: cost_of(ablation.config(variant), None).per_clip for variant in ablation.variants}
    assert len(costs) == 3 and len(set(costs.values())) == 1


def test_what_a_language_model_has_no_use_for_is_said(tmp_path: Path) -> None:
    matrix = write_matrix(tmp_path, probes=[{"label": "class"}])
    with pytest.raises(UsageError, match=r"matrix\.yaml: probes are for audio and video; a language model is measured"):
        load_ablation(str(matrix))
    with pytest.raises(UsageError, match=r"matrix\.yaml: overrides: unknown config key 'model\.audio\.decoder\.kind'"):
        load_ablation(str(write_matrix(tmp_path, overrides={"model.audio.decoder": {"kind": "cross"}})))
    with pytest.raises(UsageError, match=r"no data: give --data\.shards FOLDER"):
        main(["ablate", str(write_matrix(tmp_path)), "--out", str(tmp_path / "out"), "--debug"])
