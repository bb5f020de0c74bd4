"""Results as values: to JSON and back, and what is said of a file that holds something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from avpretrain.core.errors import UserError
from avpretrain.measures.results import Estimate, Result, WrongShapeError


@dataclass(frozen=True, kw_only=True)
class Inner(Result):
    value: Estimate
    by_name: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Outer(Result):
    name: str
    count: int
    share: float | None
    parts: tuple[Inner, ...]
    pair: tuple[int, str]
    free: Any
    done: bool = False


WHOLE = Outer(
    name="a", count=2, share=None, pair=(1, "b"), free={"x": [1]}, done=True,
    parts=(Inner(value=Estimate(value=0.5, ci=(0.25, 1.0)), by_name={"m": (1.0, 2.0)}),),
)  # fmt: skip


def test_back_from_json_it_is_the_same() -> None:
    values = json.loads(json.dumps(WHOLE.to_json()))
    assert Outer.from_json(values) == WHOLE
    assert Outer.from_json({**values, "newer": 1}) == WHOLE, "a field that this version does not know"
    del values["done"]
    assert Outer.from_json(values).done is False


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": "2"}, "'count' is '2'"),
        ({"count": True}, "'count' is 'True'"),
        ({"share": "half"}, "'share' is 'half'"),
        ({"parts": [{"value": {"value": 1}}]}, r"'parts\[0\].by_name' is missing"),
        ({"parts": [{"value": {"value": []}, "by_name": {}}]}, r"'parts\[0\].value.value' is '\[\]'"),
        ({"pair": [1]}, "'pair' is"),
        ({"name": None}, "'name' is 'None'"),
        ({"share": 10**400}, "'share' is '1000"),
    ],
)
def test_another_type_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongShapeError, match=says):
        Outer.from_json({**WHOLE.to_json(), **change})


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"a.json holds no thing \(the whole is no mapping\); write it anew with: make"):
        Outer.read(path, "thing", "make")
    with pytest.raises(UserError, match=r"b\.json"):
        Outer.read(tmp_path / "b.json", "thing", "make")
