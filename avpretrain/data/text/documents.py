"""Text files and the documents in them, read from front to back in pieces, so that no file must fit into memory."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from avpretrain.config.text import DocumentKind
from avpretrain.core.errors import UserError
from avpretrain.core.files import NotAFileError, mistaken_for, open_file, read_head
from avpretrain.data.splits import ROLES

EXTENSIONS = (".txt", ".text", ".md", ".rst", ".py", ".jsonl")
"""Files of a folder that are taken for text, also with .gz; a file that is named itself may have any."""
READ = 1 << 20
"""Bytes that are read at a time, and about as many characters of a piece."""
MAX_LINE = 64 << 20
"""Longest line of a .jsonl file, in characters."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file and the split that its name, or its folder's, says."""

    path: Path
    split: str | None

    @property
    def is_jsonl(self) -> bool:
        return self.path.name.removesuffix(".gz").endswith(".jsonl")

    @property
    def state(self) -> list[Any]:
        """Path, size and time of change: whether it is the file that was read before."""
        status = self.path.stat()
        return [str(self.path.resolve()), status.st_size, status.st_mtime_ns]


def find_texts(sources: Sequence[str | Path]) -> list[TextFile]:
    """The text files that are meant, each once, in the order of their paths within each source.

    A file is of a split where its name ends so (`novels_train.txt`, `valid.jsonl.gz`), or where it lies in a folder of
    that name right below the source (`val/a.py`).

    Raises:
        UserError: there is none.
    """
    found: dict[Path, TextFile] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"there is no {source}; name text files, folders of them, or a folder of packed tokens")
        paths = [source] if not source.is_dir() else _below(source)
        for path in paths:
            found.setdefault(path.resolve(), TextFile(path, _split_of(path, source)))
        if not paths:
            raise UserError(
                f"{source} holds no text files; they are known by their names: {' '.join(EXTENSIONS)} (.gz)"
            )
    if not found:
        raise UserError("no text: name text files or folders of them")
    return list(found.values())


def _below(folder: Path) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(root) / name
            for name in names
            if name.lower().removesuffix(".gz").endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)


def _split_of(path: Path, source: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    stem, _, extension = name.rpartition(".")
    if f".{extension}" in (".txt", ".text", ".jsonl") and (role := ROLES.get(re.split(r"[_.-]", stem)[-1])):
        return role
    above = path.relative_to(source).parts[:-1] if source.is_dir() else ()
    return ROLES.get(above[0].lower()) if above else None


def pieces(file: TextFile, kind: DocumentKind) -> Iterator[tuple[int, str]]:
    """Number of the document within the file, from 0, and a piece of its text; a long document has several pieces.

    Pieces end where a line does, before one that begins without a space: where words end, too.

    Raises:
        UserError: it can't be read, or is no text.
    """
    chunks = _chunks(file.path)
    if file.is_jsonl:
        yield from enumerate(_json_texts(chunks, file.path))
    elif kind == "file":
        yield from ((0, text) for text in _cut(chunks, re.compile(r"\n(?=\S)")))
    else:
        separator = re.compile(r"\n" if kind == "line" else r"\n[ \t\r]*\n\s*")
        yield from enumerate(text for text in _split(chunks, separator) if text.strip())


def _chunks(path: Path) -> Iterator[str]:
    """The text of a file, some at a time, without its byte order mark."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with open_file(path) as raw:
            file = cast(IO[bytes], gzip.open(raw) if path.name.endswith(".gz") else raw)  # noqa: SIM115
            while data := file.read(READ):
                if b"\0" in data:
                    raise UserError(_no_text(path, f"it holds a zero byte at {offset + data.index(0)}"))
                text = decoder.decode(data)
                yield text.removeprefix("\ufeff") if offset == 0 else text
                offset += len(data)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        where = offset + error.start
        raise UserError(_no_text(path, f"bytes from {where} on are not UTF-8")) from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path} is damaged: {str(error)[:100]}") from None
    except NotAFileError as error:
        raise UserError(f"{path} {error.strerror}; name a text file") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


def _no_text(path: Path, why: str) -> str:
    found = mistaken_for(read_head(path))
    return f"{path} {found}" if found else f"{path} is no text: {why}; leave it out, or turn it into UTF-8"


def _cut(chunks: Iterator[str], end: re.Pattern[str]) -> Iterator[str]:
    """The text in pieces that end with a match of `end`, all but the last."""
    kept = ""
    for chunk in chunks:
        kept += chunk
        ends = [found.end() for found in end.finditer(kept, max(0, len(kept) - READ))]
        if ends and len(kept) >= READ:
            yield kept[: ends[-1]]
            kept = kept[ends[-1] :]
    if kept:
        yield kept


def _split(chunks: Iterator[str], separator: re.Pattern[str]) -> Iterator[str]:
    """The stretches between matches of `separator`."""
    kept = ""
    for chunk in chunks:
        *whole, kept = separator.split(kept + chunk)
        yield from whole
    yield kept


def _json_texts(chunks: Iterator[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(_split(chunks, re.compile("\n")), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line) if len(line) <= MAX_LINE else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise UserError(f"{path} line {number} is no JSON object with a 'text'; fix it or leave the file out")
        yield value["text"]
