"""Texts that may be a stranger's, on a terminal and in a page: one helper each, so that none of them acts.

Labels, keys, file names and error messages can hold escape sequences, marks that turn the direction of writing, and
markup. Shown here they are text.
"""

from __future__ import annotations

import html
import re
import reprlib
from typing import Any

import rich.console
from rich.text import Text

_ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u2028\u2029\ufeff\ud800-\udfff]"  # line separators, byte order mark, halves of characters
)


def plain(text: object) -> str:
    """The text with what a terminal would act on written out, as Python would: ESC becomes \\x1b."""
    return _ACTS.sub(lambda match: ascii(match.group())[1:-1], str(text))


LONGEST = 200
"""Characters of a stranger's text or number that stand in a message."""
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = LONGEST
_brief.maxlist = _brief.maxtuple = _brief.maxdict = _brief.maxset = 20


def brief(value: object) -> str:
    """`repr` of a value that a file holds, for a message: whole as a rule, shortened where it would fill a screen."""
    text = _brief.repr(value)
    return text if len(text) <= 2 * LONGEST else f"{text[: 2 * LONGEST]}..."


def plain_line(text: object) -> str:
    """The same on one line: a name must not make lines of its own among ours."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


def plain_json(text: str) -> str:
    """The same for a JSON document, which stays valid."""
    return _ACTS.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def say(text: object) -> None:
    """Prints the text on stdout, as `plain` has it."""
    print(plain(text))


def escape(text: object) -> str:
    """The text as it stands in HTML and SVG, in elements and in quoted attributes."""
    return html.escape(plain(text))


def markdown(text: object) -> str:
    """The text as it stands on a line of Markdown, without links, code, tables or HTML of its own."""
    return re.sub(r"([\\`\[\]|])", r"\\\1", html.escape(plain_line(text), quote=False))


def styled(text: object, style: str) -> Text:
    """A text for a table or a console, in one of rich's styles."""
    return Text(plain(text), style)


class Console(rich.console.Console):
    """rich's console; its strings are shown as they are, without markup, emoji codes or control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)
