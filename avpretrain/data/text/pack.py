"""Text to packed tokens: one pass to count, one to train a tokenizer if none is given, one to write the shards."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avpretrain.config.text import PackConfig
from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path
from avpretrain.core.provenance import versions
from avpretrain.data.text.documents import READ, TextFile, find_texts, pieces
from avpretrain.data.text.tokenizer import Tokenizer, load_tokenizer, tokenizer_file, train_tokenizer
from avpretrain.data.text.tokens import CHUNK, FORMAT, INDEX_NAME, TokenIndex, TokenShard, is_token_set, member_bytes

END_OF_TAR = b"\0" * 1024
WHOLE = 100
"""From so many documents on, whole ones are set aside; of fewer, the end of each."""
BATCH = 4 * READ
"""Characters that are encoded at a time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a document, and the split that it goes to."""

    split: str
    text: str
    begins: bool
    """Whether a document begins with it."""


def pack(
    sources: Sequence[str | Path], out: Path, cfg: PackConfig, say: Callable[[str], None] = lambda line: None
) -> TokenIndex:
    """Packs text files into `out`, whole or not at all.

    Args:
        say: called with a line about what is done.

    Raises:
        UserError: a file can't be read or is no text, the tokenizer is none, or nothing is left to train on.
    """
    files = find_texts(sources)
    say(f"reading {len(files)} text files")
    plan = _Plan(files, cfg)
    if cfg.tokenizer:
        tokenizer = load_tokenizer(cfg.tokenizer, cfg.separator)
    else:
        say(f"training a tokenizer of {cfg.vocabulary:,} tokens")
        tokenizer = train_tokenizer((p.text for p in plan.pieces() if p.split == "train"), cfg.vocabulary)
    with atomic_path(out) as folder:
        folder.mkdir()
        writers: dict[str, _SplitWriter] = {}
        for piece, tokens in _encoded(plan.pieces(), tokenizer):
            if piece.split not in writers:
                writers[piece.split] = _SplitWriter(folder, piece.split, tokenizer, cfg)
            writers[piece.split].add(piece, tokens)
        splits = {split: asdict(writer.close()) for split, writer in writers.items()}
        splits = {split: values for split, values in splits.items() if values["documents"]}
        if not splits:
            raise UserError("no document is left to train on: lower min_characters or min_tokens, or name more text")
        tokenizer.save(folder)
        identity = {"splits": splits, "tokenizer": tokenizer.sha256, "separator": tokenizer.separator}
        index = {
            "format": FORMAT,
            "dtype": _dtype(tokenizer).name,
            "vocabulary": tokenizer.size,
            "separator_name": tokenizer.separator_name,
            **identity,
            "fingerprint": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
            "made_from": made_from(files, cfg),
            "created_with": versions(),
        }
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n")
    return TokenIndex(out)


def packed(
    sources: Sequence[str | Path], out: Path, cfg: PackConfig, say: Callable[[str], None] = lambda line: None
) -> TokenIndex:
    """As `pack`, unless `out` was packed from the same files in the same way."""
    if is_token_set(out):
        found = TokenIndex(out)
        if found.values.get("made_from") == made_from(find_texts(sources), cfg):
            return found
    elif out.exists():
        raise UserError(f"{out} holds something else than packed tokens; name a new folder")
    return pack(sources, out, cfg, say)


def made_from(files: Sequence[TextFile], cfg: PackConfig) -> dict[str, Any]:
    """What a set is made from: state of the files, and how they are packed."""
    settings = {name: getattr(cfg, name) for name in PackConfig.__dataclass_fields__}
    path = tokenizer_file(cfg.tokenizer)
    if cfg.tokenizer and path.is_file():
        settings["tokenizer"] = TextFile(path, None).state
    return {"files": [file.state for file in files], "settings": settings}


class _Plan:
    """Which text goes to which split."""

    def __init__(self, files: Sequence[TextFile], cfg: PackConfig) -> None:
        self.files, self.cfg = files, cfg
        self._lengths = [_lengths(file, cfg) for file in files]
        documents = sum(map(len, self._lengths))
        if not documents:
            raise UserError("the text files hold no text; name others")
        named = any(file.split == "val" for file in files)
        share = 0.0 if named else cfg.val_share
        self._every = round(1 / share) if share and documents >= WHOLE else 0
        self._tail = share if share and documents < WHOLE else 0.0

    def pieces(self) -> Iterator[Piece]:
        """All text that is kept, in order."""
        number = 0  # of training documents, over all files
        for file, lengths in zip(self.files, self._lengths, strict=True):
            split, before, done, begun = file.split or "train", -1, 0, set[str]()
            for document, text in pieces(file, self.cfg.documents):
                if document != before:
                    before, done, begun, number = document, 0, set(), number + 1
                length = lengths[document]
                if length < self.cfg.min_characters:
                    continue
                parts = [(split, text)]
                if split == "train" and self._every:
                    parts = [("val" if number % self._every == 0 else "train", text)]
                elif split == "train" and self._tail:
                    parts = _cut(text, round(length * (1 - self._tail)) - done)
                for part, own in parts:
                    yield Piece(part, own, part not in begun)
                    begun.add(part)
                done += len(text)


def _cut(text: str, room: int) -> list[tuple[str, str]]:
    """A piece's parts for 'train', up to the end of the line after `room` characters, and for 'val'."""
    if room >= len(text):
        return [("train", text)]
    end = (text.find("\n", room) + 1 or room) if room > 0 else 0
    return [(split, part) for split, part in (("train", text[:end]), ("val", text[end:])) if part]


def _lengths(file: TextFile, cfg: PackConfig) -> list[int]:
    """Characters of each document."""
    found: list[int] = []
    for document, text in pieces(file, cfg.documents):
        if document == len(found):
            found.append(0)
        found[document] += len(text)
    return found


def _encoded(texts: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[tuple[Piece, list[int]]]:
    waiting: list[Piece] = []
    size = 0
    for piece in texts:
        waiting.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield from zip(waiting, tokenizer.encode_batch([p.text for p in waiting]), strict=True)
            waiting, size = [], 0
    yield from zip(waiting, tokenizer.encode_batch([p.text for p in waiting]), strict=True)


def _dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")


@dataclass
class _Written:
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    shards: list[TokenShard] = field(default_factory=list)


class _SplitWriter:
    """Writes the stream of a split: chunks to shards, shards to the folder."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, cfg: PackConfig) -> None:
        self.folder, self.split, self.cfg = folder, split, cfg
        self.separator, self.dtype = tokenizer.separator, _dtype(tokenizer)
        self.chunks = max(1, cfg.shard_tokens // CHUNK)
        self.written = _Written()
        self._document: list[int] = []
        self._document_bytes, self._kept = 0, False
        self._waiting, self._filled = np.empty(CHUNK, self.dtype), 0
        self._members: list[tuple[bytes, int, int]] = []

    def add(self, piece: Piece, tokens: list[int]) -> None:
        if piece.begins:
            self._document, self._document_bytes, self._kept = [], 0, False
        self._document += tokens
        self._document_bytes += len(piece.text.encode())
        if not self._kept and len(self._document) >= max(1, self.cfg.min_tokens):
            self._kept = True
            self._write([self.separator])
            self.written.documents += 1
        if self._kept:
            self._write(self._document)
            self.written.text_bytes += self._document_bytes
            self._document, self._document_bytes = [], 0

    def close(self) -> _Written:
        """Ends the stream and the last shard."""
        if self.written.documents:
            self._write([self.separator])
            if self._filled:
                self._member(self._waiting[: self._filled])
            self._shard()
        return self.written

    def _write(self, tokens: list[int]) -> None:
        values = np.asarray(tokens, self.dtype)
        while len(values):
            taken = values[: CHUNK - self._filled]
            self._waiting[self._filled : self._filled + len(taken)] = taken
            self._filled, values = self._filled + len(taken), values[len(taken) :]
            if self._filled == CHUNK:
                self._member(self._waiting)
                self._filled = 0

    def _member(self, values: NDArray[Any]) -> None:
        number = self.written.tokens // CHUNK
        data, _ = member_bytes(values, f"{self.split}-{number:09d}.npy")
        self._members.append((data, len(values), zlib.crc32(values.data)))
        self.written.tokens += len(values)
        if len(self._members) == self.chunks:
            self._shard()

    def _shard(self) -> None:
        if not self._members:
            return
        name = f"{self.split}-{len(self.written.shards):06d}.tar"
        data = b"".join(member for member, _, _ in self._members) + END_OF_TAR
        (self.folder / name).write_bytes(data)
        tokens, sums = sum(count for _, count, _ in self._members), tuple(crc for _, _, crc in self._members)
        self.written.shards.append(TokenShard(name, tokens, hashlib.sha256(data).hexdigest(), sums))
        self._members = []
