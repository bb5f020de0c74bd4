"""GRID: sN/*.mpg, one folder a talker, with alignments sN/align/*.align or align/sN/*.align.

The file's name spells the sentence, one letter a word: bbaf2n = bin blue at f two now. All clips are of split train,
with the talker as a label. A sentence that has an alignment but no video is missing.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from avpretrain.core.files import read_text
from avpretrain.data.sources.base import VIDEO_EXTENSIONS, Item, Labels, Listing, walk

WORDS = {
    "command": {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    "color": {"b": "blue", "g": "green", "r": "red", "w": "white"},
    "preposition": {"a": "at", "b": "by", "i": "in", "w": "with"},
    "letter": {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    "digit": {"z": "0", **{digit: digit for digit in "123456789"}},
    "adverb": {"a": "again", "n": "now", "p": "please", "s": "soon"},
}
TICKS_A_SECOND = 25_000
"""Unit of the alignment files: a thousandth of a frame at 25 frames a second."""


def find(root: Path, table: Path | None) -> Listing:
    """Items of GRID."""
    paths = list(walk(root))
    aligned = {_name(path): path for path in paths if path.endswith(".align")}
    listing = Listing(items=[])
    for path in paths:
        if PurePosixPath(path).suffix.lower() not in VIDEO_EXTENSIONS:
            continue
        labels = sentence(PurePosixPath(path).stem)
        if labels is None:
            listing.ignored += 1
            continue
        talker, code = _name(path)
        labels["speaker"] = talker
        alignment = aligned.pop((talker, code), None)
        if alignment is not None:
            labels["words"] = _words(root / alignment)
        listing.items.append(Item(path=path, labels=labels))
    listing.missing = sorted(f"{talker}/{code}" for talker, code in aligned)
    return listing


def sentence(code: str) -> Labels | None:
    """The six words that a file's name spells; none if it spells no sentence."""
    if len(code) != len(WORDS):
        return None
    words = {name: spelled.get(letter) for (name, spelled), letter in zip(WORDS.items(), code.lower(), strict=True)}
    return None if None in words.values() else {name: word for name, word in words.items() if word is not None}


def _name(path: str) -> tuple[str, str]:
    """Talker (the folder named s and a number, or else the innermost) and sentence code."""
    folders = [part for part in PurePosixPath(path).parts[:-1] if part != "align"] or [""]
    return next((part for part in folders if re.fullmatch(r"s\d+", part)), folders[-1]), PurePosixPath(path).stem


def _words(alignment: Path) -> str:
    """START-END:WORD in seconds, joined by semicolons."""
    rows = [line.split() for line in read_text(alignment, errors="replace").splitlines()]
    seconds = [(int(r[0]) / TICKS_A_SECOND, int(r[1]) / TICKS_A_SECOND, r[2]) for r in rows if len(r) == 3]
    return ";".join(f"{start:.3f}-{end:.3f}:{word}" for start, end, word in seconds)
