"""Losses of seeded tiny models, stored when they were known to be right."""

import json

import pytest

from tests.methods.diffmavil.golden_losses import CASES, PATH, losses

STORED = json.loads(PATH.read_text())


@pytest.mark.parametrize("name", CASES)
def test_losses_are_the_stored_ones(name: str) -> None:
    assert losses(name) == pytest.approx(STORED[name], abs=1e-6, rel=1e-6)
