"""Likelihoods of continuations, in batches and against one at a time; windows over long texts."""

from __future__ import annotations

import pytest
import torch

from avpretrain.core.errors import UserError
from avpretrain.methods.openelm.scoring import Likelihood, likelihoods, windows
from tests.methods.openelm.test_model import tiny_model


def test_a_batch_scores_what_one_at_a_time_does() -> None:
    model, draw = tiny_model(), torch.Generator().manual_seed(4)
    sizes = [(1, 1), (3, 2), (12, 4), (1, 16), (20, 3), (2, 0), (5, 5)]
    pairs = [tuple(torch.randint(50, (n,), generator=draw).tolist() for n in size) for size in sizes]
    with torch.no_grad():  # one that is greedy
        pairs[1] = (pairs[1][0], [])
        for _ in range(2):
            tokens = torch.tensor([[*pairs[1][0], *pairs[1][1]]])
            pairs[1] = (pairs[1][0], [*pairs[1][1], int(model.logits(tokens)[0, -1].argmax())])
    found = likelihoods(model, pairs, batch_size=3)
    assert found[5] == Likelihood(0.0, True), "nothing to predict"
    for (given, continuation), likelihood in zip(pairs, found, strict=True):
        if not continuation:
            continue
        tokens = [*given, *continuation][-17:]  # the context is 16
        with torch.no_grad():
            logs = model.logits(torch.tensor([tokens[:-1]]))[0, -len(continuation) :].double().log_softmax(-1)
        expected = sum(float(row[token]) for row, token in zip(logs, continuation, strict=True))
        assert likelihood.log_probability == pytest.approx(expected, rel=1e-5)
        assert likelihood.greedy == (logs.argmax(-1).tolist() == list(continuation))
    assert found[1].greedy and not found[2].greedy


def test_a_continuation_that_does_not_fit_is_said() -> None:
    with pytest.raises(UserError, match="a continuation of 17 tokens does not fit the model's context 16"):
        likelihoods(tiny_model(), [([1], [2] * 17)])


def test_windows_predict_each_token_once_from_all_that_fits() -> None:
    pairs = list(windows(range(10), 99, context=4))
    assert [list(predicted) for _, predicted in pairs] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    inputs = [[*given, *predicted[:-1]] for given, predicted in pairs]
    assert inputs == [[99, 0, 1, 2], [3, 4, 5, 6], [5, 6, 7, 8]]
    assert list(windows([], 99, 4)) == []
