"""Command lines to arguments, by tyro; what is wrong with them in one line."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from avpretrain.core.errors import UsageError

T = TypeVar("T")


KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "a text"}
"""Types of values as tyro names them, in words."""
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
    """The message inside tyro's box in our words, without its frame, its help texts and its line breaks.

    tyro prints its errors and exits; it has no interface that hands them over, so that its text is read back.
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    text = "".join("\n" if re.match(r"[│ ]*([╭╰─]{2}|-{3,} *$)", line) else f"{line.strip('│ ')} " for line in lines)
    parts = [part.strip() for part in text.split("\n") if part.strip()]
    if "╭" not in box:  # on a terminal without UTF-8 the box has no frame, and its title stands first
        parts = parts[1:]
    message = _in_our_words(parts[0], " ".join(parts[1:])) if parts else "wrong arguments"
    meant = next((re.search(r"--[\w.-]+", part) for part in parts if part.startswith("Perhaps you meant")), None)
    return f"{message}{f'; did you mean {meant.group()}?' if meant else ''} (see {prog} --help)"


def _in_our_words(message: str, helptext: str) -> str:
    """What tyro says of one wrong argument, told to somebody who knows no Python; other messages stay as they are."""
    if match := re.match(r"Error parsing (\S+?)(?: \(.*\))?: (.*)", message):
        name, why = match.groups()
        kinds = re.search(rf"{re.escape(name)} ((?:\{{None\}}\|)?(?:\{{[A-Z ]+\}}|\[.*?\]\]|\S+))", helptext)
        kind = re.sub(r"[{}]", "", kinds.group(1).replace("{None}|", "")) if kinds else "another value"
        given = re.search(r"(?:instantiated from|for arguments:) (\[[^]]*\])", why)
        if given:
            values = " ".join(re.findall(r"'([^']*)'", given.group(1)))
            return f"{name} takes {KINDS.get(kind, kind)}, got {values}"
        number = re.search(r"(?:literal for int\(\) with base 10|could not convert string to float): (.*)", why)
        if number:
            wanted = "a whole number" if "int()" in why else "a number"
            return f"{name} takes {wanted}, got {number.group(1)}"
        return f"{name} takes {kind}: {why}"
    if match := re.match(r"invalid choice (.+?) for argument '([^']+)'\. Expected one of \((.*?),?\)\.?$", message):
        value, name, listed = match.groups()
        choices = sorted(choice for choice in re.findall(r"'([^']*)'", listed) if choice != "None")
        close = difflib.get_close_matches(value.strip("'"), choices, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(choices)}"
        return f"{name} can't be {value}; {hint}"
    if match := re.match(r"Missing value for argument '([^']+)'\. Expected (.+?) values\.", message):
        name, count = match.groups()
        return f"{name} needs a value" if count == "1" else f"{name} needs {count} values"
    if match := re.match(r"Missing from [^:]*: (.*?) ?\(required\)$", message):
        first, *more = match.group(1).split(" (required) ")
        name, _, said = first.partition(" ")
        metavar, _, rest = said.partition(" ")
        what = f"{name} {metavar}: {rest}" if name.startswith("--") else f"{name}: {said}"
        others = f" (and {', '.join(text.split(' ')[0] for text in more)})" if more else ""
        return f"give {what.rstrip(': ')}{others}"
    if match := re.match(r"Unrecognized options: (.*)", message):
        words = match.group(1).split(", ")
        options = [word for word in words if word.startswith("-")]
        if options:
            return f"no option {', '.join(options)} here"
        return f"too much on the command line: {' '.join(words)}; quote names that hold spaces"
    return message
