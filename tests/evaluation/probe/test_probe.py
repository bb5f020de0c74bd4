import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from avpretrain.core.errors import UserError
from avpretrain.data.manifest import Clip
from avpretrain.evaluation.labels import (
    Task,
    carve,
    cross_validation_parts,
    made_folds,
    official_parts,
    read_task,
    without_test,
)
from avpretrain.evaluation.probe.logistic import fit_path
from avpretrain.evaluation.probe.selection import METHODS, evaluate, select

LINEAR = METHODS["linear"]


def clip(key: str, labels: dict[str, object], source: str = "") -> Clip:
    return Clip(
        key=key, shard=0, video_ext="", video_offset=0, video_length=0, audio_ext="flac", audio_offset=0,
        audio_length=1, duration=1.0, fps=0.0, width=0, height=0, labels=json.dumps(labels), source=source or key,
        start=0.0, license="", sha256="",
    )  # fmt: skip


def rows(count: int, splits: tuple[str, ...], classes: int = 3) -> Iterator[tuple[int, Clip, str]]:
    for i in range(count):
        yield i, clip(f"k{i}", {"name": f"c{i // len(splits) % classes}", "fold": str(i % 5)}), splits[i % len(splits)]


def gaussians(task: Task, noise: float, seed: int = 0) -> torch.Tensor:
    """Features [N, 12] that tell the class apart, less well the louder the noise."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(task.classes), 12))
    target = task.target if task.target.ndim == 1 else task.target.argmax(axis=1)
    return torch.from_numpy(centres[target] + noise * rng.normal(size=(len(task), 12))).float()


def test_logistic_regression_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x_ND, y_N = rng.normal(size=(150, 6)) * [1, 5, 0.1, 1, 1, 1] + 3, rng.integers(0, 4, 150)
    z_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0)
    for l2 in (1.0, 1e-2):
        (ours,) = fit_path(torch.from_numpy(x_ND), torch.from_numpy(y_N), 4, [l2])
        theirs = LogisticRegression(C=1 / (l2 * 150), tol=1e-10, max_iter=5000).fit(z_ND, y_N)
        logits_NC = ours.logits(torch.from_numpy(x_ND))
        p_NC = torch.from_numpy(logits_NC).softmax(dim=1).numpy()
        np.testing.assert_allclose(p_NC, theirs.predict_proba(z_ND), atol=1e-5)


def test_several_labels_are_separate_logistic_regressions() -> None:
    rng = np.random.default_rng(1)
    x_ND = rng.normal(size=(200, 5))
    z_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0)
    y_NC = (x_ND[:, :3] + rng.normal(size=(200, 3))) > 0
    (ours,) = fit_path(torch.from_numpy(x_ND), torch.from_numpy(y_NC), 3, [0.05])
    p_NC = torch.from_numpy(ours.logits(torch.from_numpy(x_ND))).sigmoid().numpy()
    for c in range(3):
        theirs = LogisticRegression(C=1 / (0.05 * 200), tol=1e-10, max_iter=5000).fit(z_ND, y_NC[:, c])
        np.testing.assert_allclose(p_NC[:, c], theirs.predict_proba(z_ND)[:, 1], atol=1e-5)


def test_constant_features_do_no_harm() -> None:
    x_ND = torch.cat([torch.randn(40, 3), torch.full((40, 2), 7.0)], dim=1)
    (fitted,) = fit_path(x_ND, torch.arange(40) % 2, 2, [0.1])
    assert np.isfinite(fitted.logits(x_ND)).all()


def test_task_reads_single_and_several_labels() -> None:
    single = read_task(rows(12, ("training", "validation", "testing")), "name")
    assert single.classes == ("c0", "c1", "c2")
    assert not single.multi_label
    assert set(single.splits) == {"train", "val", "test"}
    several = read_task([(5, clip("a", {"t": ["x", "y"]}), "train"), (9, clip("b", {"t": ["y"]}), "test")], "t")
    assert several.multi_label
    assert several.target.tolist() == [[True, True], [False, True]]
    assert several.rows_N.tolist() == [5, 9]


def test_clips_without_the_label_are_counted() -> None:
    task = read_task([*rows(6, ("train",)), (6, clip("x", {}), "train"), (7, clip("y", {"name": ""}), "train")], "name")
    assert (len(task), task.without_label) == (6, 2)


@pytest.mark.parametrize(
    ("clips", "label", "says"),
    [
        (list(rows(6, ("train",))), "nmae", "labels there are: fold, name"),
        ([(0, clip("a", {}), "train")], "name", "no labels at all"),
        (list(rows(6, ("train",), classes=1)), "name", "same value in every clip"),
    ],
)
def test_label_errors_say_what_there_is(clips: list[tuple[int, Clip, str]], label: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_task(clips, label)


def test_no_test_split_is_an_error_that_names_folds() -> None:
    with pytest.raises(UserError, match=r"no clip with label 'name' is in a test split.*--folds"):
        official_parts(read_task(rows(30, ("train", "val")), "name"))


def test_a_choice_between_models_touches_no_test_clip() -> None:
    task = read_task(rows(60, ("train", "train", "val", "test")), "name")
    found = without_test(task)
    by_split = {name: {k for k, s in zip(task.keys, task.splits, strict=True) if s == name} for name in task.splits}
    assert by_split["test"].isdisjoint(found.keys)
    parts = official_parts(found)
    assert {found.keys[i] for i in parts.test} == by_split["val"]
    assert len(parts.fit) + len(parts.val) == 30
    assert len(official_parts(without_test(read_task(rows(60, ("train", "test")), "name"))).test) == 6
    with pytest.raises(UserError, match="train split"):
        without_test(read_task(rows(30, ("test",)), "name"))


def test_carved_validation_keeps_files_together_and_ignores_labels() -> None:
    groups = [f"video{i // 4}.mp4" for i in range(200)]
    fit, val = carve(np.arange(200), groups)
    assert {groups[i] for i in fit}.isdisjoint({groups[i] for i in val})
    assert len(val) == 40
    again, _ = carve(np.arange(200), groups)
    assert np.array_equal(fit, again)


def test_folds_test_every_clip_once() -> None:
    task = read_task(rows(60, ("train",)), "name")
    parts = cross_validation_parts(task, [str(i % 5) for i in range(60)])
    assert sorted(np.concatenate([p.test for p in parts]).tolist()) == list(range(60))
    for part in parts:
        assert set(part.fit) | set(part.val) | set(part.test) == set(range(60))
        assert not set(part.test) & (set(part.fit) | set(part.val))


def test_made_folds_keep_files_together_and_are_as_large() -> None:
    task = read_task(((i, clip(f"k{i}", {"name": f"c{i % 3}"}, f"v{i // 4}.mp4"), "train") for i in range(200)), "name")
    folds = made_folds(task, 5)
    assert [folds.count(str(fold)) for fold in range(1, 6)] == [40] * 5
    assert all(len(set(folds[i : i + 4])) == 1 for i in range(0, 200, 4))
    backwards = read_task(
        ((i, clip(f"k{i}", {"name": f"c{i % 3}"}, f"v{i // 4}.mp4"), "test") for i in range(199, -1, -1)), "name"
    )
    assert made_folds(backwards, 5) == folds[::-1], "order and splits of the clips do not matter"


@pytest.mark.parametrize(
    ("count", "says"),
    [(0, "at least 3 folds"), (2, "at least 3 folds"), (31, "31 folds need as many files, and 30 have")],
)
def test_folds_that_can_not_be_made(count: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        made_folds(read_task(rows(30, ("train",)), "name"), count)


def test_probe_reads_what_is_there_and_no_more() -> None:
    task = read_task(rows(300, ("train", "train", "val", "test")), "name")
    parts = [official_parts(task)]
    right = evaluate(gaussians(task, noise=0.3), task, parts, LINEAR).parts[0]["test_score"]
    chance = evaluate(torch.randn(300, 12, generator=torch.Generator().manual_seed(0)), task, parts, LINEAR).parts[0][
        "test_score"
    ]
    assert right > 0.95
    assert chance < 0.6


def test_test_labels_never_reach_selection() -> None:
    """Shuffling the test clips' labels changes the score, and nothing that was chosen or fitted."""
    task = read_task(rows(200, ("train", "val", "test")), "name")
    x_ND, part = gaussians(task, noise=1.5), official_parts(task)
    target = task.target.copy()
    target[part.test] = np.random.default_rng(0).permutation(target[part.test])
    shuffled = replace(task, target=target)
    (a, l2_a, val_a), (b, l2_b, val_b) = select(x_ND, task, part, LINEAR), select(x_ND, shuffled, part, LINEAR)
    assert (l2_a, val_a) == (l2_b, val_b)
    assert np.array_equal(a(x_ND), b(x_ND))
    assert (
        evaluate(x_ND, task, [part], LINEAR).parts[0]["test_score"]
        > evaluate(x_ND, shuffled, [part], LINEAR).parts[0]["test_score"] + 0.1
    )


def test_validation_chooses_a_regulariser_that_helps() -> None:
    """With more features than clips and weak signal the weakest regulariser overfits; the chosen one does better."""
    task = read_task(rows(90, ("train", "val", "test")), "name")
    weak = torch.cat(
        [gaussians(task, noise=2.0), torch.randn(90, 200, generator=torch.Generator().manual_seed(0))], dim=1
    )
    parts = [official_parts(task)]
    chosen = evaluate(weak, task, parts, LINEAR)
    forced = evaluate(weak, task, parts, replace(LINEAR, grid=(1e-6,)))
    assert chosen.parts[0]["l2"] > 1e-6
    assert chosen.parts[0]["val_score"] >= forced.parts[0]["val_score"]


def test_nearest_neighbours_equal_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    x_MD, y_M, x_ND = rng.normal(size=(120, 6)), rng.integers(0, 3, 120), rng.normal(size=(30, 6))
    centred_M, centred_N = x_MD - x_MD.mean(axis=0), x_ND - x_MD.mean(axis=0)
    for k in (1, 7):
        (ours,) = METHODS["knn"].fit(torch.from_numpy(x_MD), torch.from_numpy(y_M), 3, [float(k)])
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        expected_NC = theirs.fit(centred_M, y_M).predict_proba(centred_N)
        np.testing.assert_allclose(ours(torch.from_numpy(x_ND)), expected_NC, atol=1e-9)
