"""The one exception that means "the user can fix this", and the one line that any other exception becomes."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

__all__ = ["UsageError", "UserError", "describe"]

PROGRAM_ERRORS = (AssertionError, AttributeError, ImportError, NameError, NotImplementedError, TypeError)
"""What wrong code raises, ours or that of a library in an incompatible version, and damaged data do not. Code that must
catch every exception of some library lets these pass."""


class UserError(Exception):
    """Work failed for a reason the user can fix; the message says what is wrong and what to do. Exit status 1."""

    exit_status = 1


class UsageError(UserError):
    """The command or its configuration is wrong, and nothing was started. Exit status 2."""

    exit_status = 2


FAULT = "this is a fault of avpretrain or of a library's version; please report it with what --debug shows"


def describe(error: BaseException) -> str:
    """One line about an unexpected exception: its type, its message, what it interrupted (its notes), and where.

    One that DataLoader passed on from its processes is told as it was there.
    """
    text = str(error)
    if re.match(r"Caught \w+ in DataLoader worker process", text):
        told = [line for line in text.splitlines() if line and not line[0].isspace()]
        first = max((i for i, line in enumerate(told) if re.match(r"[\w.]+(:|$)", line)), default=0)
        line = "; ".join([told[first].removeprefix("builtins."), *told[first + 1 :]])
    else:
        line = "; ".join([f"{type(error).__name__}: {text or 'no message'}", *getattr(error, "__notes__", ())])
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).is_relative_to(Path(__file__).parents[1])]
        line += f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return " ".join(line.split())
