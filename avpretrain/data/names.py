"""File names as text that every reader takes: UTF-8, one line, and still one name for each file.

A file name is bytes. Those that are no UTF-8 (Python holds them as lone surrogates), control characters, line ends and
backslashes are written as `\\xHH`, one for each byte, and `unescape_name` gives the very name back.
"""

from __future__ import annotations

import re
import unicodedata

_ODD = frozenset(["Cc", "Cs", "Zl", "Zp"])
"""Unicode categories: control characters, surrogates, line and paragraph separators."""


def escape_name(name: str) -> str:
    r"""A file name as printable UTF-8; two different names never become one. `café` in Latin-1 becomes `caf\xe9`."""
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    return "".join(_escaped(char) for char in name)


def unescape_name(text: str) -> str:
    """The file name of which `escape_name` made `text`."""
    if "\\" not in text:
        return text
    data = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), name_bytes(text))
    return data.decode("utf-8", "surrogateescape")


def printable_name(name: str) -> str:
    """A name as text for people, with its backslashes as they are: what can't be printed is escaped."""
    return "".join(char if char == "\\" else _escaped(char) for char in name)


def _escaped(char: str) -> str:
    if char != "\\" and unicodedata.category(char) not in _ODD:
        return char
    return "".join(f"\\x{byte:02x}" for byte in name_bytes(char))


def name_bytes(name: str) -> bytes:
    """A file name as the file system holds it; what hashes of names are taken of."""
    return name.encode("utf-8", "surrogateescape")
