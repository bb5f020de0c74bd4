import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from avpretrain.evaluation.predictions import Predictions, difference, summarise
from avpretrain.measures import intervals, metrics


def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and positives: smooth, heavily tied, all equal, one positive, perfectly and wrongly ranked."""
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=200)
    positive = rng.random(200) < 0.3
    single = np.zeros(200, dtype=bool)
    single[17] = True
    return [
        (smooth, positive),
        (np.round(smooth), positive),
        (np.zeros(200), positive),
        (smooth, single),
        (positive.astype(float), positive),
        (-positive.astype(float), positive),
        (smooth[:2], np.array([True, False])),
    ]


@pytest.mark.parametrize("case", range(7))
@pytest.mark.parametrize("weighted", [False, True])
def test_ranking_metrics_equal_scikit_learn(case: int, weighted: bool) -> None:
    score_N, positive_N = cases()[case]
    rng = np.random.default_rng(case)
    weight_RN = rng.integers(1, 4, (3, len(score_N))).astype(float) if weighted else np.ones((1, len(score_N)))
    ap = metrics.average_precision(score_N, positive_N, weight_RN)
    auc = metrics.roc_auc(score_N, positive_N, weight_RN)
    for r, weight_N in enumerate(weight_RN):
        assert ap[r] == pytest.approx(average_precision_score(positive_N, score_N, sample_weight=weight_N), abs=1e-12)
        assert auc[r] == pytest.approx(roc_auc_score(positive_N, score_N, sample_weight=weight_N), abs=1e-12)


def test_weights_of_zero_drop_clips() -> None:
    score_N, positive_N = cases()[1]
    weight_N = np.random.default_rng(1).integers(0, 2, len(score_N)).astype(float)
    kept = weight_N > 0
    for metric in (metrics.average_precision, metrics.roc_auc):
        dropped = metric(score_N[kept], positive_N[kept], np.ones((1, kept.sum())))
        assert metric(score_N, positive_N, weight_N[None])[0] == pytest.approx(dropped[0], abs=1e-12)


def test_accuracy_equals_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    scores_NC, target_N = rng.integers(0, 3, (300, 5)).astype(float), rng.integers(0, 5, 300)
    ours = metrics.accuracy(scores_NC, target_N, np.ones((1, 300)))[0]
    assert ours == pytest.approx(accuracy_score(target_N, scores_NC.argmax(axis=1)))


def test_class_without_positives_is_left_out_and_said() -> None:
    rng = np.random.default_rng(3)
    scores_NC, target_NC = rng.normal(size=(100, 4)), rng.random((100, 4)) < 0.4
    target_NC[:, 2] = False
    kept = [0, 1, 3]
    predictions = Predictions(tuple(map(str, range(100))), ("a", "b", "c", "d"), scores_NC, target_NC)
    summary = summarise(predictions, seed=0)
    assert summary["classes_without_positives"] == ["c"]
    expected = np.mean([average_precision_score(target_NC[:, c], scores_NC[:, c]) for c in kept])
    auc = np.mean([roc_auc_score(target_NC[:, c], scores_NC[:, c]) for c in kept])
    assert summary["map"] == pytest.approx(expected)
    assert summary["auc"] == pytest.approx(auc)
    assert summary["d_prime"] == pytest.approx(np.sqrt(2) * norm.ppf(auc))


def test_no_class_can_be_judged() -> None:
    nothing = metrics.mean_average_precision(np.zeros((4, 2)), np.zeros((4, 2), dtype=bool), np.ones((1, 4)))
    assert np.isnan(nothing[0])


def test_interval_covers_the_truth_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(200):
        right_N = (rng.random(120) < 0.7).astype(float)
        low, high = intervals.interval(lambda w, y=right_N: w @ y / w.sum(axis=1), 120, seed=trial, resamples=300)
        hits += low <= 0.7 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_is_a_function_of_the_seed() -> None:
    def mean(weight_RN: np.ndarray) -> np.ndarray:
        return weight_RN @ np.arange(50.0) / 50

    assert intervals.interval(mean, 50, seed=1) == intervals.interval(mean, 50, seed=1)
    assert intervals.interval(mean, 50, seed=1) != intervals.interval(mean, 50, seed=2)


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(5)
    target_N = rng.integers(0, 2, 400)
    right_N = rng.random(400) < 0.8
    better_N = right_N | (rng.random(400) < 0.1)
    keys = tuple(map(str, range(400)))

    def answers(right: np.ndarray) -> Predictions:
        said = np.where(right, target_N, 1 - target_N)
        return Predictions(keys, ("a", "b"), np.eye(2)[said], target_N)

    gain = difference(answers(better_N), answers(right_N), seed=0)
    assert gain.value == pytest.approx(better_N.mean() - right_N.mean())
    low, high, value = *gain.ci, gain.value
    assert low is not None and high is not None and value is not None and 0 < low < value < high
    wide = summarise(answers(right_N), seed=0)["ci"]
    assert high - low < wide[1] - wide[0]


def test_interval_across_folds_is_students_t() -> None:
    scores = [0.8, 0.7, 0.9, 0.75, 0.85]
    low, high = ttest_1samp(scores, 0).confidence_interval(0.95)
    found = intervals.across(scores)
    assert found["mean"] == pytest.approx(0.8)
    assert found["ci"] == pytest.approx([low, high])
