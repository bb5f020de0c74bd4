"""Models of Google's sentencepiece (`tokenizer.model`), read into a tokenizer of Hugging Face's library.

A file is a protobuf message, `ModelProto` of sentencepiece_model.proto; the few fields that decide how text is cut are
read here, so that neither library is needed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SPACE = "\u2581"
"""What stands for a space in pieces."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces."""
UNIGRAM, BPE = 1, 2
"""Kinds of models that can be read, of four."""
UNLIKELY = -1e4
"""Score of pieces that no text may be cut into, as far below all others."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token: its text with `SPACE` for spaces, its log-probability or rank, its kind."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What decides how text is cut."""

    pieces: tuple[Piece, ...]
    kind: int
    byte_fallback: bool
    space_after: bool
    """Spaces belong to the word before them."""
    characters: bytes
    """Map of characters that are normalised, compiled; empty = none is."""
    space_first: bool
    """A space is put before a text."""
    merge_spaces: bool
    """Spaces at both ends are removed, and several become one."""


def parse(data: bytes) -> SentencePieceModel:
    """A model from the bytes of its file.

    Raises:
        ValueError: they are none, or ask for what can't be done here; the message says it in words.
    """
    try:
        top = list(_fields(data))
        trainer = {n: v for number, value in top if number == 2 for n, v in _fields(_bytes(value))}
        normaliser = {n: v for number, value in top if number == 3 for n, v in _fields(_bytes(value))}
        model = SentencePieceModel(
            pieces=tuple(_piece(_bytes(value)) for number, value in top if number == 1),
            kind=_number(trainer.get(3, UNIGRAM)),
            byte_fallback=bool(trainer.get(35, 0)),
            space_after=bool(trainer.get(24, 0)),
            characters=_bytes(normaliser.get(2, b"")),
            space_first=bool(normaliser.get(3, 1)),
            merge_spaces=bool(normaliser.get(4, 1)),
        )
    except (struct.error, UnicodeDecodeError, IndexError, TypeError):
        raise ValueError("is no sentencepiece model, or is damaged") from None
    pieces = model.pieces
    if not pieces or not trainer:
        raise ValueError("is no sentencepiece model, or is damaged")
    if model.kind not in (UNIGRAM, BPE):
        raise ValueError("is a sentencepiece model of words or characters; only unigram and BPE models can be read")
    if model.space_after:
        raise ValueError("is a sentencepiece model that puts spaces after words, which can't be read")
    if not normaliser.get(5, 1):
        raise ValueError("is a sentencepiece model that does not escape spaces, which can't be read")
    if len({piece.text for piece in pieces}) < len(pieces):
        raise ValueError("is a damaged sentencepiece model: it has pieces twice")
    if sum(piece.kind == UNKNOWN for piece in pieces) != 1:
        raise ValueError("is a damaged sentencepiece model: it needs one piece for what is unknown")
    return model


def backend(model: SentencePieceModel) -> Backend:
    """A tokenizer that cuts text as the model does, its tokens numbered as the model's pieces.

    Raises:
        ValueError: its map of characters is damaged.
    """
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Made

    unknown = next(i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    symbols = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
    if model.kind == UNIGRAM:
        made = Made(models.Unigram(_scores(model.pieces), unknown, model.byte_fallback))
    else:
        made = Made(
            models.BPE(
                {piece.text: i for i, piece in enumerate(model.pieces)}, _merges(model.pieces),
                unk_token=model.pieces[unknown].text, fuse_unk=True, byte_fallback=model.byte_fallback,
                ignore_merges=bool(symbols),
            )
        )  # fmt: skip
    if symbols:  # each is cut out before the rest is cut
        longest_first = sorted(symbols, key=len, reverse=True)
        made.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated")
    try:
        steps: list[Any] = [normalizers.Precompiled(model.characters)] if model.characters else []
    except Exception:  # the library raises nothing more specific
        raise ValueError("is a damaged sentencepiece model: its map of characters can't be read") from None
    if model.merge_spaces:
        steps += [normalizers.Replace(Regex(pattern), by) for pattern, by in ((" {2,}", " "), (r"\A | \z", ""))]
    steps += [normalizers.Prepend(SPACE)] if model.space_first else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if model.space_first else []
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    special = [piece.text for piece in model.pieces if piece.kind in (CONTROL, UNKNOWN)]
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return made


def _scores(pieces: Sequence[Piece]) -> list[tuple[str, float]]:
    """Pieces with their log-probabilities; symbols of the user's win, and what no text may be cut into loses."""
    best = max((piece.score for piece in pieces if piece.kind == NORMAL), default=0.0)
    symbol = {USER_DEFINED: lambda piece: len(piece.text.encode()) * best - 0.1, NORMAL: lambda piece: piece.score}
    return [(piece.text, symbol[piece.kind](piece) if piece.kind in symbol else UNLIKELY) for piece in pieces]


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Pairs of pieces that become one, the best first."""
    known = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    found = []
    for text, score in known.items():
        pairs = [(text[:i], text[i:]) for i in range(1, len(text))]
        found += [(-score, pair) for pair in pairs if pair[0] in known and pair[1] in known]
    return [pair for _, pair in sorted(found, key=lambda entry: entry[0])]


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))[0]
    return Piece(_bytes(fields[1]).decode() if 1 in fields else "", score, _number(fields.get(3, NORMAL)))


def _bytes(value: bytes | int) -> bytes:
    """A field that has to hold bytes."""
    if not isinstance(value, bytes):
        raise TypeError("a number in place of bytes")
    return value


def _number(value: bytes | int) -> int:
    if not isinstance(value, int):
        raise TypeError("bytes in place of a number")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a protobuf message; floats and doubles as their bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise IndexError("no such kind of field")
        if number == 0 or place + size > len(data):
            raise IndexError("cut short")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise IndexError("no number")
