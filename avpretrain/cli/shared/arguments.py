"""Command lines to arguments, by tyro; what is wrong with them in one line."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from avpretrain.core.errors import UsageError

T = TypeVar("T")


BOOLEAN = re.compile(r"--[^=]+=(true|false)", re.IGNORECASE)


def parse(
    target: Callable[..., T] | type[T], args: Sequence[str], prog: str, default: Any = None, about: str | None = None
) -> T:
    """What tyro makes of the command line: `target` filled with arguments, over `default` where it is a dataclass.

    A flag is `--name` or `--no-name`; `--name True` and `--name False` are taken, too.

    Args:
        about: what the help begins with; without it, the docstring of `target`.

    Raises:
        UsageError: an argument is wrong; the message is tyro's, in one line.
    """
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    if about:
        keywords["description"] = inspect.cleandoc(about)
    try:
        return _parse(target, args, prog, keywords)
    except UsageError:
        flags = _as_flags(args)
        if flags == list(args):
            raise
        with contextlib.suppress(UsageError):
            return _parse(target, flags, prog, keywords)
        raise


def _parse(target: Callable[..., T] | type[T], args: Sequence[str], prog: str, keywords: dict[str, Any]) -> T:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(target, args=list(args), prog=prog, **keywords)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(said.getvalue(), prog)) from None
    except ValueError as error:  # a config's own check of its values
        raise UsageError(f"{error} (see {prog} --help)") from None


def _as_flags(args: Sequence[str]) -> list[str]:
    """`--run.compile True` and `--run.compile=False` as `--run.compile` and `--run.no-compile`."""
    flags: list[str] = []
    for text in (part for arg in args for part in (arg.split("=", 1) if BOOLEAN.fullmatch(arg) else [arg])):
        if text.lower() in ("true", "false") and flags and flags[-1].startswith("--"):
            if text.lower() == "false":
                section, dot, name = flags.pop().removeprefix("--").rpartition(".")
                flags.append(f"--{section}{dot}no-{name}")
        else:
            flags.append(text)
    return flags


def bind(function: Callable[..., None], args: Sequence[str], prog: str) -> Callable[[], None]:
    """`function` with the command line's arguments, not called yet: what it prints and raises is its own affair.

    Raises:
        UsageError: an argument is wrong.
    """

    @functools.wraps(function)
    def filled(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(function, *positional, **named)

    return parse(filled, args, prog)


def _one_line(box: str, prog: str) -> str:
    """The message inside tyro's box, without its frame, its help texts and its line breaks."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    text = " ".join("---" if re.match(r"[│ ]*[╭╰─]{2}", line) else line.strip("│ ") for line in lines)
    parts = [part.strip() for part in text.split("---") if part.strip()]
    message = parts[0] if parts else "wrong arguments"
    meant = next((re.search(r"--[\w.-]+", part) for part in parts if part.startswith("Perhaps you meant")), None)
    return f"{message}{f'; did you mean {meant.group()}?' if meant else ''} (see {prog} --help)"
