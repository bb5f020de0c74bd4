"""What the page consists of: sections of blocks, each drawn by the template that it names, and the page around them.

Everything a template prints is escaped and loses what a terminal or an editor would act on; only what templates
themselves made is markup.
"""

from __future__ import annotations

import base64
import functools
import io
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from avpretrain.core.errors import UserError
from avpretrain.core.files import read_bytes
from avpretrain.core.terminal import plain

TEMPLATES = Path(__file__).parent / "templates"
QUALITY = 85
"""Of pictures in the page, as WebP."""


@runtime_checkable
class Block(Protocol):
    """A part of a section; its template finds it as `block`."""

    template: ClassVar[str]


@runtime_checkable
class Drawing(Protocol):
    """What a figure shows; its template finds it as `drawing`."""

    template: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with an anchor of its own."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    note: str = ""
    """What the reader should know before looking."""


# --- blocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Legend:
    """Colour and name of each thing shown."""

    template: ClassVar[str] = "legend.html"
    items: Sequence[tuple[str, str]]
    """CSS class and name."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing under its caption."""

    caption: str
    drawing: Drawing
    note: str = ""
    """After the caption, less prominent."""
    readout: bool = False
    """Leaves a line below, where the page's script writes the values under the pointer."""
    key: Legend | None = None
    """Below the drawing."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A grid of figures that takes as many columns as fit."""

    template: ClassVar[str] = "figures.html"
    items: Sequence[Figure]
    css: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: what it shows, and what it is sorted by."""

    text: str
    value: int | float | None = None
    copy: bool = False
    """Shown as code with a button that copies it."""


EMPTY = Cell("", -1.0)
"""Sorted below all numbers."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names the rows."""

    template: ClassVar[str] = "table.html"
    label: str
    """Its name for readers who can't see it."""
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = True
    """Numbers that a click on a heading sorts by; otherwise words."""
    folded: str = ""
    """Text of a line that opens the table; none = always open."""


@dataclass(frozen=True, slots=True)
class Card:
    """The main numbers of one thing."""

    title: str
    css: str
    note: str
    number: str
    remark: str
    rows: Sequence[tuple[str, str, str]]
    """Name, value, and what is said below the value."""


@dataclass(frozen=True, slots=True)
class Cards:
    """Cards side by side."""

    template: ClassVar[str] = "cards.html"
    items: Sequence[Card]


@dataclass(frozen=True, slots=True)
class Downloads:
    """Files inside the page: name, MIME type and text of each."""

    template: ClassVar[str] = "downloads.html"
    files: Sequence[tuple[str, str, str]]


# --- drawings other than charts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture at its natural size where there is room; scrolls sideways where the screen is narrow."""

    template: ClassVar[str] = "picture.html"
    source: str
    alternative: str
    width: int
    height: int
    name: str = ""
    """In a sequence: what tells it from the others."""

    @classmethod
    def of(cls, path: Path, alternative: str, name: str = "") -> Picture:
        """Reads a picture; it goes into the page as WebP where that is smaller.

        Raises:
            UserError: it is none.
        """
        from PIL import Image

        data, kind, packed = read_bytes(path), mimetypes.guess_type(path.name)[0] or "image/png", io.BytesIO()
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                image.convert("RGB").save(packed, "WEBP", quality=QUALITY, method=2)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} is not a picture that can be read ({plain(error)}); remove it") from None
        if packed.tell() < len(data):
            data, kind = packed.getvalue(), "image/webp"
        return cls(data_uri(data, kind), alternative, width, height, name)


@dataclass(frozen=True, slots=True)
class PictureSequence:
    """Pictures of one thing over time; the page's script shows one at a time, the last first."""

    template: ClassVar[str] = "sequence.html"
    items: Sequence[Picture]


@dataclass(frozen=True, slots=True)
class Players:
    """Sounds to listen to, under a picture of them: name and source of each."""

    template: ClassVar[str] = "players.html"
    picture: Picture | None
    items: Sequence[tuple[str, str]]


def data_uri(data: bytes, kind: str) -> str:
    """The bytes as an address inside the page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# --- the page --------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else plain(value)


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters["px"] = lambda value: f"{value:.1f}"
    made.filters["data_uri"] = lambda text, kind: data_uri(text.encode(), kind)
    return made


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template with its values as text; the page itself, a block, or a drawing."""
    return _environment().get_template(template).render(values)
