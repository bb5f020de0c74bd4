"""Commands whose first argument names a config, and whose others change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import tyro

from avpretrain.cli.shared.arguments import parse
from avpretrain.config.reader import load_config
from avpretrain.config.train import TrainConfig
from avpretrain.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ConfigArguments:
    """What follows the config's name: any key of the config, and what a command adds."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


T = TypeVar("T", bound=ConfigArguments)


def first_and_rest(args: Sequence[str], help: str) -> tuple[str, list[str]] | None:
    """The name that comes first, and what follows it; none where help is asked for, which is printed.

    Args:
        help: begins with 'usage: avpretrain VERB NAME ...'.

    Raises:
        UsageError: an option comes first.
    """
    if not args or args[0] in ("-h", "--help"):
        print(help)
        return None
    name, *rest = args
    if name.startswith("-"):
        usage = help.splitlines()[0].removeprefix("usage: ")
        what = next(word for word in usage.split() if word.isupper())
        raise UsageError(f"the {what.lower()} comes first: {usage}")
    return name, rest


def read(target: type[T], args: Sequence[str], help: str) -> T | None:
    """`target` with the config that is named first, changed as the rest says; none where help is asked for.

    Raises:
        UsageError: there is no such config, or an argument is wrong.
    """
    found = first_and_rest(args, help)
    if found is None:
        return None
    name, rest = found
    verb = help[: help.index(" CONFIG")].removeprefix("usage: ")
    return parse(target, rest, f"{verb} {name}", target(config=load_config(name)))
