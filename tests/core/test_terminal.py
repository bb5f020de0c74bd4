"""What strangers wrote is text on a terminal, whichever line prints it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import avpretrain
from avpretrain.core.terminal import LONGEST, brief, plain, plain_line

ESCAPING = {"plain", "plain_json", "plain_line", "dumps", "_help"}
"""Functions whose text can't act on a terminal; json.dumps writes ASCII unless it is told otherwise."""


def is_safe(node: ast.expr) -> bool:
    """Whether an expression is written in the source, a constant of it, a number, or escaped."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.IfExp):
        return is_safe(node.body) and is_safe(node.orelse)
    if isinstance(node, ast.Name):
        return node.id.isupper()
    if isinstance(node, ast.Attribute):
        return node.attr == "__version__"
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        told = any(word.arg == "ensure_ascii" for word in node.keywords)
        return name in ESCAPING and not told
    return False


OURS = {
    ("cli/bench/__init__.py", "f'  {subject:<8}  {summary}'"),  # a table of our own
    ("cli/shared/config_first.py", "help"),
}
"""Calls of print that show nothing but what this package holds."""


def test_print_gets_escaped_texts_only() -> None:
    root, wrong = Path(avpretrain.__file__).parent, []
    for path in sorted(root.rglob("*.py")):
        where = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                unsafe = [ast.unparse(arg) for arg in node.args if not is_safe(arg)]
                wrong += [f"{where}:{node.lineno}: {text}" for text in unsafe if (where, text) not in OURS]
    assert not wrong, "use say() or plain():\n" + "\n".join(wrong)


def test_what_a_terminal_acts_on_is_written_out() -> None:
    assert plain("\x1b[2J\u202e\x9b1m\r") == "\\x1b[2J\\u202e\\x9b1m\\r"
    assert plain("é 日本 [red]") == "é 日本 [red]"
    assert plain_line("a\nb\tc\x1b") == "a\\nb\\tc\\x1b"


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000_000, [[0]] * 1_000_000, {str(i): i for i in range(10_000)}, {"a": ["x" * 10**6] * 19}, 10**4000],
)
def test_messages_hold_little_of_a_long_value(value: object) -> None:
    assert len(brief(value)) <= 2 * LONGEST + 3


@pytest.mark.parametrize("value", ["48", 48, 1.5, None, True, [1, 2], {"a": 1}, float("nan")])
def test_short_values_stand_as_they_are(value: object) -> None:
    assert brief(value) == repr(value)
