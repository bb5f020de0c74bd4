"""Results read back from disk, intervals of few clips, and tables on narrow terminals."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from avpretrain.cli.main import run as run_verb
from avpretrain.cli.shared.tables import show_facts, show_table
from avpretrain.core.errors import UserError
from avpretrain.core.terminal import Console
from avpretrain.evaluation.predictions import Predictions, Ranks, difference, summarise
from avpretrain.evaluation.results import compare_results, save_result
from avpretrain.evaluation.setup import random_encoder
from avpretrain.measures import intervals
from avpretrain.measures.results import Estimate
from avpretrain.measures.scores import bounds, points, read_score
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny

FOREIGN = {
    "a list": [1, 2],
    "no metric": {"task": "spectrum", "label": "test", "methods": {}},
    "a metric without its value": {"metric": "accuracy", "label": "x"},
    "a value that is text": {"metric": "accuracy", "accuracy": "0.5"},
    "a value that is null": {"metric": "d_prime", "d_prime": None},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the results of a real retrieval, of one without modality or interval, and of other shapes."""
    folder = tmp_path_factory.mktemp("made")
    random_encoder(tiny(), seed=1).save_pretrained(folder / "run" / "model")
    data = {"clips": 1234, "split": "train", "fingerprint": "0123456789abcdef"}
    (folder / "run" / "run.json").write_text(json.dumps({"data": data}))
    shards = make_dataset(folder / "set", [Spec(seconds=1.0, size=(32, 32), split="test") for _ in range(4)])
    run_verb("retrieve", [str(folder / "run"), str(shards), "--num-workers", "0"])
    for name, content in FOREIGN.items():
        (folder / "run" / "eval" / f"{name}.json").write_text(json.dumps(content))
    return folder / "run"


def test_export_after_retrieve(run_dir: Path, tmp_path: Path) -> None:
    run_verb("export", [str(run_dir), str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    score = read_score(run_dir / "eval" / "retrieval_test.json")
    assert score is not None and score.interval is not None
    assert f"retrieval in split test: recall_at_1 {score.value:.3f}, 95% interval [" in card
    assert "Trained on 1,234 clips" in card


def test_a_run_record_without_data_is_said(run_dir: Path, tmp_path: Path) -> None:
    random_encoder(tiny(), seed=1).save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="does not say what data"):
        run_verb("export", [str(tmp_path / "run"), str(tmp_path / "out")])


@pytest.mark.parametrize("name", FOREIGN)
def test_results_of_other_shapes_have_no_score(run_dir: Path, name: str) -> None:
    path = run_dir / "eval" / f"{name}.json"
    assert read_score(path) is None
    with pytest.raises(UserError, match="holds no result of probe, finetune or retrieve"):
        compare_results(path, run_dir / "eval" / "retrieval_test.json")


def test_baselines_without_the_metric_are_left_out(tmp_path: Path) -> None:
    others = {"a": {"accuracy": 0.25}, "b": {}, "c": 3, "d": {"accuracy": math.inf}}
    whole = {"metric": "accuracy", "accuracy": 1, "ci": [None, None], "baselines": others, "checkpoint": {"seen": 7}}
    (tmp_path / "x.json").write_text(json.dumps(whole))
    score = read_score(tmp_path / "x.json")
    assert score is not None
    assert (score.value, score.interval, score.baselines, score.seen) == (1.0, None, {"a": 0.25}, 7)


# --- intervals -------------------------------------------------------------------------------------------------------


def answers(right: list[bool]) -> Predictions:
    target_N = np.zeros(len(right), dtype=np.int64)
    said = np.where(right, 0, 1)
    return Predictions(tuple(map(str, range(len(right)))), ("a", "b"), np.eye(2)[said], target_N)


@pytest.mark.parametrize(("right", "clips"), [(0, 8), (8, 8), (3, 8), (1, 1), (0, 1), (400, 1000)])
def test_accuracy_has_wilsons_interval(right: int, clips: int) -> None:
    found = summarise(answers([True] * right + [False] * (clips - right)), seed=0)
    expected = binomtest(right, clips).proportion_ci(method="wilson")
    assert found["accuracy"] == pytest.approx(right / clips)
    assert found["ci"] == found["cis"]["accuracy"] == pytest.approx([expected.low, expected.high], abs=1e-12)
    assert found["ci"][1] - found["ci"][0] > 0.03


@pytest.mark.parametrize("rank", [1.0, 3.0])
def test_recall_of_few_clips_is_not_certain(rank: float) -> None:
    ranked = Ranks(tuple("abcd"), np.full(4, rank), np.full(4, rank))
    low, high = intervals.estimate(ranked.statistic("recall_at_1"), 4, 0, intervals.wilson).ci
    assert low is not None and high is not None and high - low > 0.4


@pytest.mark.parametrize(("ours", "theirs"), [(False, False), (True, True), (True, False), (False, True)])
def test_a_difference_that_no_resample_changes_is_not_certain(ours: bool, theirs: bool) -> None:
    found = difference(answers([ours] * 8), answers([theirs] * 8), seed=0)
    low, high, value = *found.ci, found.value
    assert low is not None and high is not None
    assert value == int(ours) - int(theirs)
    assert low <= value <= high and high - low > 0.3
    assert (low > 0 or high < 0) == (ours != theirs)


def test_map_of_a_single_clip_has_no_interval() -> None:
    one = Predictions(("a",), ("x", "y"), np.array([[1.0, 0.0]]), np.array([[True, False]]))
    assert summarise(one, seed=0)["ci"] == [None, None]
    assert difference(one, one, seed=0) == Estimate(value=0.0)


def test_agresti_min_equals_its_table() -> None:
    """Half a clip in each cell of the 2 x 2 table, then Wald."""
    both = np.array([[0.5, 0.5], [0.5, 8.5]])  # eight clips that both have right
    total = both.sum()
    share = both / total
    half = 1.959964 * math.sqrt((share[0, 1] + share[1, 0] - (share[0, 1] - share[1, 0]) ** 2) / total)
    assert intervals.agresti_min(0.0, 8) == pytest.approx((-half, half), rel=1e-6)


def test_unknown_intervals_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Predictions(("a",), ("x", "y"), np.array([[1.0, 0.0]]), np.array([[True, False]]))
    for name in ("a", "b"):
        save_result(tmp_path / f"{name}.json", {"checkpoint": {}, **summarise(one, seed=0)}, one)
    run_verb("compare", [str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "95% interval unknown" in capsys.readouterr().out
    assert points([None, 0.5]) == points(None) == "unknown"
    assert points([0.25, 0.5]) == "25.0 to 50.0"
    assert bounds([0, True]) is None


# --- tables ----------------------------------------------------------------------------------------------------------

HEADINGS = ("features", "query", "R@1", "R@5", "R@10", "median rank")
ROWS = [
    ("encoder", "audio", "100.0 (95-100)", "100.0 (95-100)", "100.0 (95-100)", "1"),
    ("", "video", "12.5 (8-16)", "100.0 (95-100)", "100.0 (95-100)", "1234.5"),
    ("random encoder [x]", "audio", "12.5 (8-16)", "40.0 (35-45)", "50.0 (45-55)", "17"),
]


def printed(width: int, rows: list[tuple[str, ...]] = ROWS, headings: tuple[str, ...] = HEADINGS) -> str:
    out = io.StringIO()
    show_table(headings, rows, "a title", text=2, total=True, console=Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [240, 80, 60, 20])
def test_tables_keep_labels_and_numbers(width: int) -> None:
    text = printed(width)
    for row in ROWS:
        assert all(word in text for cell in row[2:] for word in cell.split())
        assert row[0] in text and row[1] in text
    assert max(map(len, text.splitlines())) <= max(width, 72)


def test_tables_fit_80_columns() -> None:
    assert max(map(len, printed(80).splitlines())) == 80


def test_facts_fold() -> None:
    out = io.StringIO()
    facts = [("fingerprint", "0123456789abcdef" * 8), ("[label]", "a 1, b 2")]
    show_facts(facts, Console(file=out, width=80))
    assert "0123456789abcdef" * 8 in out.getvalue().replace(" ", "").replace("\n", "").replace("fingerprint", "")
    assert "[label]" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80
