"""AVA's average precision against what its specification says, in plain Python."""

from __future__ import annotations

import gzip
import math
import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from avpretrain.core.errors import UserError
from avpretrain.methods.speaker.ava import AvaRows, read_rows, write_predictions
from avpretrain.methods.speaker.metric import (
    SpeakerScore,
    average_precision,
    evaluate,
    score_rows,
    tie_range,
    weighted_average_precision,
)


def by_the_rules(truth: dict[str, bool], scores: dict[str, float]) -> float:
    """Sorted by score, highest first; precision and recall after each row; precision made monotone from the end."""
    rows = sorted(truth, key=lambda uid: -scores[uid])  # Python's sort leaves ties as they stand in the ground truth
    positives = sum(truth.values())
    points, found = [], 0
    for count, uid in enumerate(rows, 1):
        found += truth[uid]
        points.append((found / positives, found / count))
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        if recall != before:
            area += (recall - before) * max(precision for _, precision in points[i:])
            before = recall
    return area


def table(path: Path, rows: list[tuple[str, float, str, str]], scores: list[float] | None = None) -> Path:
    lines = [
        f"{video},{time},0.1,0.2,0.3,0.4,{'SPEAKING_AUDIBLE' if scores else label},{entity}"
        + (f",{scores[i]!r}" if scores else "")
        for i, (video, time, label, entity) in enumerate(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def some_rows(count: int, rng: random.Random) -> list[tuple[str, float, str, str]]:
    labels = ["NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE"]
    return [(f"v{i % 3}", round(0.04 * (i // 5), 2), rng.choice(labels), f"v{i % 3}:{i % 5}") for i in range(count)]


@pytest.mark.parametrize("levels", [0, 2, 7], ids=["no ties", "two scores", "seven scores"])
def test_equals_the_specification_on_tables_in_any_order(tmp_path: Path, levels: int) -> None:
    rng = random.Random(levels)
    for number in range(20):
        rows = some_rows(rng.randrange(1, 90), rng)
        rows[0] = (*rows[0][:2], "SPEAKING_AUDIBLE", rows[0][3])
        scores = [rng.randrange(levels) / levels if levels else rng.gauss(0, 2) for _ in rows]
        uids = [f"{time}:{entity}" for _, time, _, entity in rows]
        expected = by_the_rules(
            {uid: row[2] == "SPEAKING_AUDIBLE" for uid, row in zip(uids, rows, strict=True)},
            dict(zip(uids, scores, strict=True)),
        )
        mixed = list(range(len(rows)))
        rng.shuffle(mixed)
        truth = read_rows(table(tmp_path / f"{number}.csv", rows))
        told = table(tmp_path / f"{number}p.csv", [rows[i] for i in mixed], [scores[i] for i in mixed])
        found = evaluate(truth, read_rows(told, scored=True))
        assert found.average_precision == pytest.approx(expected, abs=1e-12)
        assert found.lowest - 1e-12 <= found.average_precision <= found.highest + 1e-12


def test_all_positive_is_one_and_none_is_undefined() -> None:
    score_N = np.random.default_rng(0).normal(size=50)
    assert average_precision(score_N, np.ones(50, bool)) == 1.0
    assert math.isnan(average_precision(score_N, np.zeros(50, bool)))
    with pytest.raises(UserError, match="none of 50 rows is SPEAKING_AUDIBLE"):
        score_rows(score_N, np.zeros(50, bool))


def test_ties_have_a_range_whose_ends_are_reached() -> None:
    positive_N = np.array([0, 1, 0, 1, 1], bool)
    score_N = np.array([1.0, 1.0, 0.5, 0.5, 0.5])
    low, high = tie_range(score_N, positive_N)
    orders = [
        average_precision(score_N[order], positive_N[order])
        for order in map(np.array, ([0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [0, 1, 3, 2, 4], [1, 0, 2, 3, 4]))
    ]
    assert (low, high) == (min(orders), max(orders))
    assert low < high
    assert len(set(tie_range(np.arange(5.0), positive_N))) == 1


def test_differs_from_scikit_learn() -> None:
    """No maximum over higher recalls there, and rows of one score count together."""
    positive_N = np.array([1, 0, 1, 1, 0, 1], bool)
    falling_N = -np.arange(6.0)
    assert average_precision(falling_N, positive_N) == pytest.approx((1 + 3 / 4 + 3 / 4 + 4 / 6) / 4)
    assert average_precision_score(positive_N, falling_N) == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 6) / 4)
    assert average_precision(np.zeros(6), positive_N) != average_precision_score(positive_N, np.zeros(6))


def test_a_weight_is_a_row_that_stands_several_times() -> None:
    rng = np.random.default_rng(3)
    score_N, positive_N, weight_N = rng.normal(size=40), rng.random(40) < 0.4, rng.integers(0, 4, 40)
    repeated = average_precision(np.repeat(score_N, weight_N), np.repeat(positive_N, weight_N))
    assert weighted_average_precision(score_N, positive_N, weight_N[None].astype(float))[0] == pytest.approx(repeated)


def test_written_predictions_are_read_back(tmp_path: Path) -> None:
    truth = read_rows(table(tmp_path / "truth.csv", some_rows(60, random.Random(1))))
    score_N = np.random.default_rng(1).normal(size=60)
    write_predictions(tmp_path / "told.csv", truth, score_N)
    assert not (tmp_path / "told.csv").read_text().startswith("video_id")
    back = read_rows(tmp_path / "told.csv", scored=True)
    assert back.score_N is not None and np.array_equal(back.score_N, score_N)
    found = evaluate(truth, back)
    assert found == score_rows(score_N, truth.label_N == 1)
    assert SpeakerScore.from_json(found.to_json()) == found


def test_header_and_gzip(tmp_path: Path) -> None:
    plain = table(tmp_path / "plain.csv", some_rows(9, random.Random(1)))
    header = b"entity_id,label,x1,y1,x2,y2,timestamp,video_id\n"
    lines = [line.split(",") for line in plain.read_text().splitlines()]
    turned = "".join(f"{w[7]},{w[6]},{w[2]},{w[3]},{w[4]},{w[5]},{w[1]},{w[0]}\n" for w in lines)
    (tmp_path / "turned.csv.gz").write_bytes(gzip.compress(header + turned.encode()))
    ours, theirs = read_rows(plain), read_rows(tmp_path / "turned.csv.gz")
    assert [ours.uid(i) for i in range(9)] == [theirs.uid(i) for i in range(9)]
    assert np.array_equal(ours.box_N4, theirs.box_N4) and np.array_equal(ours.label_N, theirs.label_N)


def test_a_damaged_gzip_is_said_in_a_line(tmp_path: Path) -> None:
    plain = table(tmp_path / "plain.csv", some_rows(900, random.Random(1))).read_bytes()
    data = gzip.compress(plain)
    for i in range(30, len(data) - 30, 97):
        (tmp_path / "a.csv.gz").write_bytes(data[:i] + bytes([data[i] ^ 0xFF] * 9) + data[i + 9 :])
        with pytest.raises(UserError) as error:
            read_rows(tmp_path / "a.csv.gz")
        assert "can't be read: " in str(error.value) and "\n" not in str(error.value)


GOOD = "v,0.0,0.1,0.2,0.3,0.4,SPEAKING_AUDIBLE,v:0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("v,0.0,0.1,0.2,0.3,0.4,SPEAKING_AUDIBLE", "has 7 columns, not 8"),
        (f"{GOOD}\nv,0.04,0.1,0.2", "Expected 8 columns, got 4"),
        (f"{GOOD}\nv,soon,0.1,0.2,0.3,0.4,SPEAKING_AUDIBLE,v:0", "soon"),
        (f"{GOOD}\nv,0.04,0.1,nan,0.3,0.4,SPEAKING_AUDIBLE,v:0", "row 2 has entity_box_y1 nan"),
        (f"{GOOD}\nv,0.04,0.1,,0.3,0.4,SPEAKING_AUDIBLE,v:0", "row 2 has no entity_box_y1"),
        (f"{GOOD}\nv,0.04,0.1,0.2,0.3,0.4,TALKING,v:0", "row 2 has label 'TALKING'"),
        ("video_id,frame_timestamp,x1,y1,x2,y2\nv,1,1,1,1,1", "lacks the columns label, entity_id"),
    ],
)
def test_a_wrong_table_is_said_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError) as error:
        read_rows(tmp_path / "a.csv")
    assert said in str(error.value) and "\n" not in str(error.value)


def told(path: Path, text: str) -> AvaRows:
    path.write_text(text)
    return read_rows(path, scored=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "has 2 rows and"),
        (lambda rows: [*rows[:-1], rows[0]], "holds row 0.0:v:0 twice"),
        (lambda rows: [rows[0].replace("v:0", "w:0"), *rows[1:]], "lacks row"),
        (lambda rows: [rows[0].replace("0.3", "0.30000001"), *rows[1:]], "the box of 0.0:v:0 differs"),
        (lambda rows: [rows[0].replace("SPEAKING_AUDIBLE", "NOT_SPEAKING"), *rows[1:]], "row 1 has label NOT_SPEAKING"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(tmp_path: Path, change, said: str) -> None:  # type: ignore[no-untyped-def]
    rows = [f"v,{time},0.1,0.2,0.3,0.4,SPEAKING_AUDIBLE,v:0" for time in (0.0, 0.04, 0.08)]
    (tmp_path / "truth.csv").write_text("\n".join(rows))
    truth = read_rows(tmp_path / "truth.csv")
    assert evaluate(truth, told(tmp_path / "b.csv", "\n".join(f"{row},0.5" for row in rows))).average_precision == 1
    nearly = [rows[0].replace("0.3", "0.3000000005"), *rows[1:]]  # within the tolerance
    assert evaluate(truth, told(tmp_path / "b.csv", "\n".join(f"{row},1" for row in nearly))).rows == 3
    with pytest.raises(UserError, match=said):
        evaluate(truth, told(tmp_path / "b.csv", "\n".join(f"{row},0.5" for row in change(rows))))
