"""Packed tokens: webdataset tars of `.npy` members, with an index, read at any place.

A set is a folder with `SPLIT-000000.tar`, ..., `tokens.json` and `tokenizer.json`. The tokens of a split are one
stream: each document after its separator, and a separator at the end. A shard holds a stretch of the stream, in members
of `CHUNK` tokens (uint16 or uint32; the last may be shorter). Windows are cut from the stream when it is read, so that
one set serves any context.
"""

from __future__ import annotations

import io
import math
import mmap
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import map_file, read_json
from avpretrain.data.manifest import is_shard_name
from avpretrain.data.splits import chosen_splits
from avpretrain.data.text.tokenizer import TOKENIZER_NAME, Tokenizer, load_tokenizer

INDEX_NAME = "tokens.json"
FORMAT = 1
CHUNK = 1 << 16
"""Tokens of a member."""
Tokens = NDArray[np.int64]


def member_bytes(tokens: NDArray[Any], name: str) -> tuple[bytes, int]:
    """A tar member with an array, padded, and where the array's values begin in it."""
    content = io.BytesIO()
    np.lib.format.write_array(content, tokens, version=(1, 0), allow_pickle=False)
    data = content.getvalue()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    padded = data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
    return header + padded, len(header) + len(data) - tokens.nbytes


@dataclass(frozen=True, slots=True)
class TokenShard:
    """One tar file; fields as in `tokens.json`."""

    name: str
    tokens: int
    sha256: str
    crc32: tuple[int, ...]
    """Of each member's values."""


@dataclass(frozen=True, slots=True)
class TokenSplit:
    """What `tokens.json` says of a split."""

    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of its documents."""
    shards: tuple[TokenShard, ...]


def is_token_set(path: str | Path) -> bool:
    """Whether a folder holds packed tokens."""
    return (Path(path) / INDEX_NAME).is_file()


class TokenIndex:
    """A set's `tokens.json`, checked.

    Raises:
        UserError: there is none, or it is damaged.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        values = read_json(self.root / INDEX_NAME, "index of tokens")
        damaged = f"{self.root / INDEX_NAME} is damaged; pack the text again, or fetch the set again"
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            there = values.get("format") if isinstance(values, dict) else None
            raise UserError(f"{self.root} has token format {there!r}, this version reads {FORMAT}; pack the text again")
        self.values: dict[str, Any] = values
        try:
            self.dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[values["dtype"]])
            self.fingerprint, self.vocabulary = str(values["fingerprint"]), int(values["vocabulary"])
            self.separator = int(values["separator"])
            self.splits = {name: _read_split(found) for name, found in values["splits"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(damaged) from None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the text was packed by."""
        return load_tokenizer(self.root / TOKENIZER_NAME, str(self.values.get("separator_name", "")))


def _read_split(values: dict[str, Any]) -> TokenSplit:
    shards = tuple(
        TokenShard(shard["name"], int(shard["tokens"]), str(shard["sha256"]), tuple(map(int, shard["crc32"])))
        for shard in values["shards"]
    )
    for shard in shards:
        if not is_shard_name(shard.name) or len(shard.crc32) != math.ceil(shard.tokens / CHUNK):
            raise ValueError(shard.name)
    split = TokenSplit(int(values["tokens"]), int(values["documents"]), int(values["text_bytes"]), shards)
    if split.tokens != sum(shard.tokens for shard in shards):
        raise ValueError("tokens")
    return split


class TokenStream:
    """The tokens of one split of one set or several, as one stream.

    Raises:
        UserError: a set is damaged or has no such split.
        UsageError: sets were packed by different tokenizers.
    """

    def __init__(self, folders: Sequence[str | Path], split: str) -> None:
        self.split = split
        self.sets = [TokenIndex(folder) for folder in folders]
        first = self.sets[0]
        self._shards: list[tuple[TokenIndex, TokenShard]] = []
        self.documents = self.text_bytes = 0
        for index in self.sets:
            if index.values.get("tokenizer") != first.values.get("tokenizer"):
                raise UsageError(f"{first.root} and {index.root} were packed by different tokenizers; pack one again")
            chosen = chosen_splits(split, index.splits)
            if not chosen:
                raise UserError(f"{index.root} has no split '{split}'; it has: {', '.join(index.splits)}")
            for name in chosen:
                found = index.splits[name]
                self.documents += found.documents
                self.text_bytes += found.text_bytes
                self._shards += [(index, shard) for shard in found.shards]
        self._starts = [0, *accumulate(shard.tokens for _, shard in self._shards)]
        self._maps: dict[int, mmap.mmap] = {}
        self._checked: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        """Tokens."""
        return self._starts[-1]

    @property
    def fingerprint(self) -> str:
        """Equal = the same tokens of all splits by the same tokenizer."""
        return "+".join(index.fingerprint for index in self.sets)

    @property
    def separator(self) -> int:
        return self.sets[0].separator

    def read(self, start: int, count: int) -> Tokens:
        """int64 [count] from place `start` on.

        Raises:
            IndexError: they reach over the end.
            UserError: a shard is missing or damaged.
        """
        if not 0 <= start <= start + count <= len(self):
            raise IndexError(f"tokens {start} to {start + count} of {len(self)}")
        parts = []
        while count:
            number = bisect_right(self._starts, start) - 1
            place = start - self._starts[number]
            chunk, offset = divmod(place, CHUNK)
            values = self._chunk(number, chunk)[offset : offset + count]
            parts.append(values)
            start, count = start + len(values), count - len(values)
        joined = np.concatenate(parts) if parts else np.empty(0)
        return joined.astype(np.int64)

    def _chunk(self, number: int, chunk: int) -> NDArray[Any]:
        """The values of a shard's member, looked through when they are first read."""
        index, shard = self._shards[number]
        full, start = member_layout(CHUNK, index.dtype.itemsize)
        length = min(CHUNK, shard.tokens - chunk * CHUNK)
        offset = chunk * full + (start if length == CHUNK else member_layout(length, index.dtype.itemsize)[1])
        data = self._map(number)
        if offset + length * index.dtype.itemsize > len(data):
            raise UserError(f"{index.root / shard.name} is cut short; pack the text again, or fetch the shard again")
        values = np.frombuffer(data, index.dtype, length, offset)
        if (number, chunk) not in self._checked:
            if zlib.crc32(values.data) != shard.crc32[chunk]:
                raise UserError(f"{index.root / shard.name} is damaged; pack the text again, or fetch the shard again")
            self._checked.add((number, chunk))
        return values

    def _map(self, number: int) -> mmap.mmap:
        if number not in self._maps:
            index, shard = self._shards[number]
            self._maps[number] = map_file(index.root / shard.name, "pack the text again, or fetch the shard again")
        return self._maps[number]


def member_layout(tokens: int, itemsize: int) -> tuple[int, int]:
    """Bytes of a tar member of so many tokens, and where its values begin."""
    dtype = np.dtype(f"<u{itemsize}")
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(header, described)
    start = tarfile.BLOCKSIZE + len(header.getvalue())
    size = start + tokens * itemsize
    return size + -size % tarfile.BLOCKSIZE, start
