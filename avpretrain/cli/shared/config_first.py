"""Verbs whose first argument names a config, and whose others change it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import tyro

from avpretrain.cli.shared.arguments import parse
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError
from avpretrain.methods.diffmavil.config import TrainConfig, load_config

A_CONFIG = "A YAML file or the name of a preset."


@dataclass(frozen=True, kw_only=True)
class ConfigArguments:
    """What follows the config's name: any key of the config, and what a verb adds."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


T = TypeVar("T", bound=ConfigArguments)


def first_and_rest(
    args: Sequence[str],
    prog: str,
    target: type[ConfigArguments],
    about: str | None,
    name: str = "CONFIG",
    what: str = A_CONFIG,
) -> tuple[str, list[str]] | None:
    """The name that comes first, and what follows it; none where help is asked for, which is printed.

    Args:
        target: the verb's arguments; help shows those that it adds to the config's.
        about: purpose of the verb, what it reads and writes, and how long it takes.
        name: what comes first, as help calls it.
        what: help of it.

    Raises:
        UsageError: nothing or an option comes first.
    """  # fmt: skip
    if args and args[0] in ("-h", "--help"):
        show_help(prog, target, about, name, what)
        return None
    if not args or args[0].startswith("-"):
        raise UsageError(f"the {name.lower()} comes first: {prog} {name} [--section.field VALUE ...]")
    first, *rest = args
    return first, [data_as_shards(text) for text in rest]


def data_as_shards(option: str) -> str:
    """`--data` as the key of the config that it means."""
    name, equals, value = option.partition("=")
    return f"--data.shards{equals}{value}" if name == "--data" else option


def arguments_for(target: type[ConfigArguments], schema: type[EngineConfig]) -> type[Any]:
    """`target` with a config of another method's type, whose fields become options."""
    config = (Annotated[schema, tyro.conf.arg(name="")], field(default_factory=schema))
    namespace = {"__annotations__": {"config": config[0]}, "config": config[1], "__module__": target.__module__}
    return dataclass(frozen=True, kw_only=True)(type(target.__name__, (target,), namespace))


def read(target: type[T], args: Sequence[str], prog: str, about: str | None) -> T | None:
    """`target` with the config that is named first, changed as the rest says; none where help is asked for.

    Raises:
        UsageError: there is no such config, or an argument is wrong.
    """
    name_and_rest = first_and_rest(args, prog, target, about)
    if name_and_rest is None:
        return None
    name, rest = name_and_rest
    return parse(target, rest, f"{prog} {name}", target(config=load_config(name)), about)


def show_help(prog: str, target: type[ConfigArguments], about: str | None, name: str, what: str) -> None:
    """Prints what a verb takes besides the keys of the config, which `VERB NAME --help` lists with their values."""

    def verb(first: str, options: Any, data: tuple[str, ...] = ()) -> None: ...

    # instead of the config, whose fields would be looked up one by one, only to be left out
    hidden = {"__annotations__": {"config": Annotated[int, tyro.conf.Suppress]}, "config": 0}
    own = type(target.__name__, (target,), {**hidden, "__module__": target.__module__})
    own = dataclass(frozen=True, kw_only=True)(own)
    shards = "Folders or URLs written by `avpretrain shards`; short for --data.shards."
    verb.__annotations__ = {
        "first": Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar=name, help=what)],
        "options": Annotated[own, tyro.conf.arg(name="")],
        "data": Annotated[tuple[str, ...], tyro.conf.arg(help=shards)],
    }
    more = f"Any key of the config is an option: '{prog} {name} --help' lists them."
    try:
        parse(verb, ["--help"], prog, about=f"{inspect.cleandoc(about or '')}\n\n{more}")
    except SystemExit:
        return
