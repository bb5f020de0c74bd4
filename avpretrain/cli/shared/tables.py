"""Tables on a terminal: every row keeps its label and every number its digits, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table

from avpretrain.core.terminal import Console, styled

LONGEST_LABEL = 32
"""Characters of a label that stay on one line."""


def show_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    *,
    text: int = 1,
    bold: int | None = None,
    total: bool = False,
    console: Console | None = None,
) -> None:
    """Prints a table of numbers; cells are plain text and break between words alone.

    Where even that does not fit, lines are longer than the terminal is wide: it wraps them, and nothing is cut.

    Args:
        text: leading columns that hold text; the others hold numbers.
        bold: index of a row that stands out.
        total: the last row sums the others up.
    """
    console = console or Console()
    columns = [[row[i] for row in (headings, *rows)] for i in range(len(headings))]
    widths = _widths(columns, text, console.width - 3 * len(columns) - 1)
    shown = Table(title=styled(title, "") if title else None)
    for i, (heading, width) in enumerate(zip(headings, widths, strict=True)):
        shown.add_column(styled(heading, ""), justify="left" if i < text else "right", width=width, overflow="fold")
    for number, row in enumerate(rows):
        if total and number == len(rows) - 1:
            shown.add_section()
        shown.add_row(*(styled(cell, "bold" if number == bold else "") for cell in row))
    _print(console, shown, sum(widths) + 3 * len(widths) + 1)


def show_facts(rows: Sequence[tuple[str, str]], console: Console | None = None) -> None:
    """Prints names and what is said of each, in two columns without a frame; long texts run over several lines."""
    console = console or Console()
    shown = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    shown.add_column(width=min(LONGEST_LABEL, max((cell_len(name) for name, _ in rows), default=1)), overflow="fold")
    shown.add_column(min_width=20, overflow="fold")
    for name, value in rows:
        shown.add_row(styled(name, ""), styled(value, ""))
    _print(console, shown, LONGEST_LABEL + 24)


def _print(console: Console, shown: Table, least: int) -> None:
    """Prints on lines of at least so many characters."""
    width = console.width
    try:
        console.width = max(width, least)
        console.print(shown, crop=False)
    finally:
        console.width = width


def _widths(columns: Sequence[Sequence[str]], text: int, room: int) -> list[int]:
    """Of each column: its longest cell, and where that is too wide, numbers down to their longest word."""
    longest = [max(map(cell_len, cells)) for cells in columns]
    widths = [min(LONGEST_LABEL, width) if i < text else width for i, width in enumerate(longest)]
    least = [max((cell_len(word) for cell in cells for word in cell.split()), default=1) for cells in columns]
    least[:text] = widths[:text]
    while sum(widths) > room and widths != least:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths
