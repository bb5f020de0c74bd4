"""The command line of verbs whose first argument is a config: overrides, their short forms, and what has no name."""

from __future__ import annotations

import pytest

from avpretrain.cli.shared.config_first import ConfigArguments, read
from avpretrain.core.errors import UsageError
from avpretrain.methods.diffmavil.config import TrainConfig


def config(*args: str) -> TrainConfig:
    given = read(ConfigArguments, ["tiny_mavil", *args], "avpretrain verb", "About.")
    assert given is not None
    return given.config


def test_data_is_short_for_the_shards() -> None:
    assert config("--data", "a").data.shards == ("a",)
    assert config("--data=a").data.shards == config("--data.shards", "a").data.shards == ("a",)
    assert config("--data", "a", "b").data.shards == ("a", "b")


@pytest.mark.parametrize(
    ("words", "compiled"),
    [
        (["--run.compile"], True),
        (["--run.no-compile"], False),
        (["--run.compile", "True"], True),
        (["--run.compile=False"], False),
    ],
)
def test_flags_are_set_with_and_without_a_value(words: list[str], compiled: bool) -> None:
    assert config(*words).run.compile is compiled


def test_other_keys_stay_as_the_preset_says() -> None:
    changed = config("--optim.lr", "0.5")
    assert changed.optim.lr == 0.5
    assert changed.model == config().model


def test_the_config_comes_first() -> None:
    with pytest.raises(UsageError, match="the config comes first"):
        read(ConfigArguments, ["--data", "a"], "avpretrain verb", "About.")
