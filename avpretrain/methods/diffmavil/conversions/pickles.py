"""What a pickle would build, counted from its opcodes before anything is built.

An object that stands in two places costs a pickle two bytes. A pair of pairs of pairs, sixty deep, is a kilobyte, and
the first thing that hashes or prints it never ends; nothing can interrupt that.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

from avpretrain.core.files import open_file

MAX_PICKLE_BYTES = 64 << 20
"""Largest pickle inside a checkpoint; weights lie beside it."""
MAX_OPCODES = 300_000
"""Thirty make a tensor; checking and reading so many takes four seconds."""
MAX_UNFOLDED = 1 << 25
"""Most objects, each counted as often as it is reached; to hash so many takes two seconds."""
OLD_PARTS = 5
"""Pickles at the head of a checkpoint that is no archive: mark, version, system, weights, keys of storages."""

_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_FILLS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})


class _Node:
    __slots__ = ("parts",)

    def __init__(self, parts: list[_Node]) -> None:
        self.parts = parts


def check_pickles(path: Path) -> None:
    """Counts what the pickles of a torch checkpoint would build.

    Raises:
        ValueError: more than the limits, or it is damaged.
        OSError, zipfile.BadZipFile: it can't be read.
    """
    with open_file(path) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(OLD_PARTS):
                if not file.peek(1):
                    break
                check_pickle(file)
            return
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".pkl"):
                    if info.file_size > MAX_PICKLE_BYTES:
                        raise ValueError(f"its pickle has {info.file_size / 1e6:.0f} MB")
                    check_pickle(io.BytesIO(archive.read(info)))


def check_pickle(stream: BinaryIO) -> None:
    """The same for one pickle, which is read to its end.

    Raises:
        ValueError: see `check_pickles`.
    """
    nodes: list[_Node] = []
    stack: list[_Node | None] = []  # none = a mark
    memo: dict[int, _Node | None] = {}
    try:
        for count, (opcode, value, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise ValueError(f"its pickle has more than {MAX_OPCODES} opcodes")
            name = opcode.name
            if name == "MARK":
                stack.append(None)
            elif name in _GETS:
                stack.append(memo[int(value)])  # type: ignore[arg-type]
            elif name in _PUTS:
                memo[int(value)] = stack[-1]  # type: ignore[arg-type]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "DUP":
                stack.append(stack[-1])
            else:
                parts = _taken(opcode, stack)
                if name in _FILLS:
                    parts[-1].parts += parts[:-1]
                    stack.append(parts[-1])
                elif opcode.stack_after:
                    nodes.append(_Node(parts))
                    stack.append(nodes[-1])
    except (IndexError, KeyError):
        raise ValueError("its pickle is damaged") from None
    if _unfolded(nodes) > MAX_UNFOLDED:
        raise ValueError("its pickle unfolds to more objects than any checkpoint has")


def _taken(opcode: pickletools.OpcodeInfo, stack: list[_Node | None]) -> list[_Node]:
    """What an opcode takes off the stack, the topmost first."""
    before, taken = opcode.stack_before, []
    single = len(before)
    if pickletools.markobject in before:
        single = before.index(pickletools.markobject)
        while (top := stack.pop()) is not None:
            taken.append(top)
    taken += [top for top in (stack.pop() for _ in range(single)) if top is not None]
    return taken


def _unfolded(nodes: list[_Node]) -> int:
    """Objects below every node, and below these, as often as they are reached; at most a little above the limit."""
    size: dict[int, int] = {}
    total = 0
    for root in nodes:
        todo = [root]
        while todo:
            node = todo[-1]
            if id(node) not in size:
                size[id(node)] = 1  # what it is where it contains itself
                todo += [part for part in node.parts if id(part) not in size]
            else:
                todo.pop()
                if size[id(node)] == 1 and node.parts:
                    below = sum(size[id(part)] for part in node.parts)
                    size[id(node)] = min(1 + below, MAX_UNFOLDED)
                    total += below
                    if total > MAX_UNFOLDED:
                        return total
    return total
