"""Presets by schema: each verb finds its own by name, and a file anywhere may extend one."""

from __future__ import annotations

from pathlib import Path

import pytest

from avpretrain.ablate.matrix import load_ablation
from avpretrain.config.reader import SCHEMAS, find_config, presets, presets_dir
from avpretrain.core.errors import UsageError
from avpretrain.evaluation.suite.plan import load_suite
from avpretrain.methods.diffmavil.config import load_config


def test_every_file_is_a_preset_of_one_schema_and_no_name_is_taken_twice() -> None:
    files = sorted(presets_dir().rglob("*.yaml"))
    found = [path for schema in SCHEMAS for path in presets(schema).values()]
    assert sorted(found) == files
    assert len({path.stem for path in files}) == len(files)


def test_each_verb_reads_its_own_schema() -> None:
    assert load_config("tiny_mavil").name == "tiny_mavil"
    assert load_ablation("ablation_tiny").name == "ablation_tiny"
    assert load_suite("results").tasks


def test_a_preset_of_another_schema_is_named_as_such() -> None:
    with pytest.raises(UsageError, match="'results' is a list of evaluations, for avpretrain evaluate"):
        find_config("results")
    with pytest.raises(UsageError, match="'tiny_mavil' is a config of a run, for avpretrain train"):
        load_ablation("tiny_mavil")
    with pytest.raises(UsageError, match="did you mean 'results'"):
        load_suite("result")


@pytest.mark.parametrize("name", ["configs/tiny_fast.yaml", "configs/diffmavil/tiny_fast.yaml", "diffmavil/tiny_fast"])
def test_a_path_of_the_repository_means_its_preset_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == presets()["tiny_fast"]


@pytest.mark.parametrize("parent", ["tiny_mavil", "tiny_mavil.yaml"])
def test_a_file_anywhere_extends_a_preset_by_name(parent: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: {parent}\nseed: 5\n")
    mine, preset = load_config(str(tmp_path / "mine.yaml")), load_config("tiny_mavil")
    assert (mine.name, mine.seed, mine.model) == ("mine", 5, preset.model)


def test_a_file_of_the_same_name_as_a_preset_extends_the_preset(tmp_path: Path) -> None:
    (tmp_path / "tiny_mavil.yaml").write_text("extends: tiny_mavil\nseed: 5\n")
    mine = load_config(str(tmp_path / "tiny_mavil.yaml"))
    assert (mine.seed, mine.model) == (5, load_config("tiny_mavil").model)


def test_a_file_beside_comes_before_a_preset(tmp_path: Path) -> None:
    (tmp_path / "tiny_mavil.yaml").write_text("seed: 7\n")
    (tmp_path / "mine.yaml").write_text("extends: tiny_mavil\n")
    assert load_config(str(tmp_path / "mine.yaml")).seed == 7


def test_a_matrix_of_ones_own_extends_a_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: ablation_tiny\nseeds: [4]\n")
    assert load_ablation(str(tmp_path / "mine.yaml")).settings.seeds == (4,)


def test_an_unknown_parent_is_one_line_with_the_nearest_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: tiny_mvil\n")
    with pytest.raises(UsageError, match="did you mean 'tiny_mavil'"):
        load_config(str(tmp_path / "mine.yaml"))
