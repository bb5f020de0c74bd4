"""Pieces of a self-contained HTML page: figures, tables, sections, and the page around them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avpretrain.core.files import read_bytes
from avpretrain.core.terminal import escape

STYLE, SCRIPT = "page.css", "page.js"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with an anchor of its own."""

    anchor: str
    title: str
    body: str
    note: str = ""
    """What the reader should know before looking."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: what it shows, and what it is sorted by."""

    text: str
    value: int | float | None = None


def figure(caption: str, picture: str, note: str = "", readout: bool = False) -> str:
    """A picture under its caption.

    Args:
        note: beside the caption, less prominent.
        readout: leaves a line below, where the page's script writes the values under the pointer.
    """
    beside = f" <span>{escape(note)}</span>" if note else ""
    below = "<output></output>" if readout else ""
    return f"<figure><figcaption>{escape(caption)}{beside}</figcaption>{picture}{below}</figure>"


def figures(items: Sequence[str], css: str = "") -> str:
    """A grid of figures that takes as many columns as fit."""
    return f'<div class="figures {css}">{"".join(items)}</div>'


def picture(path: Path, alternative: str) -> str:
    """A PNG inside the page; scrolls sideways where the screen is narrow."""
    data = base64.b64encode(read_bytes(path)).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}">'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(alternative)}">{image}</div>'


def legend(items: Sequence[tuple[str, str]]) -> str:
    """Colour and name of each thing shown; items are (CSS class, name)."""
    rows = "".join(f'<li><span class="swatch {css}"></span>{escape(name)}</li>' for css, name in items)
    return f'<ul class="legend">{rows}</ul>'


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], label: str, sortable: bool = True) -> str:
    """A table whose first column names the rows.

    Args:
        label: the table's name for readers who can't see it.
        sortable: numbers that a click on a heading sorts by; otherwise words.
    """
    heads = "".join(
        f'<th scope="col">{f"<button>{escape(h)}</button>" if sortable else escape(h)}</th>' for h in headings
    )
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td{_sort_key(cell)}>{escape(cell.text)}</td>" for cell in rest)
        body.append(f'<tr><th scope="row"{_sort_key(first)}>{escape(first.text)}</th>{cells}</tr>')
    css = "sortable" if sortable else "words"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="{css}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _sort_key(cell: Cell) -> str:
    return "" if cell.value is None else f' data-value="{cell.value!r}"'


def _section(section: Section) -> str:
    note = f"<p>{escape(section.note)}</p>" if section.note else ""
    return f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{note}{section.body}</section>'


def page(title: str, subtitle: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page; style and script are inside it, and nothing is loaded from elsewhere."""
    here = Path(__file__).parent
    style, script = (here / STYLE).read_text(), (here / SCRIPT).read_text()
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    parts = "".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n<body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{lead}<nav>{links}</nav></header>\n"
        f"<main>{parts}</main>\n<footer>{escape(footer)}</footer>\n<script>\n{script}</script></body></html>\n"
    )
