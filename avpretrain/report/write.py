"""The report: one HTML file that compares runs, readable anywhere, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import avpretrain
from avpretrain.core.files import atomic_path
from avpretrain.core.terminal import escape
from avpretrain.report.comparison import Comparison, cautions, sentences, summary_table
from avpretrain.report.page import page
from avpretrain.report.sections import SECTIONS

__all__ = ["Comparison", "render", "summary_table", "write_report"]


def render(comparison: Comparison, warnings: Sequence[str] = ()) -> str:
    """The page as HTML.

    Args:
        warnings: what keeps the numbers from being read as they stand, beside what the runs themselves tell.
    """
    names = [group.name for group in comparison.groups]
    title = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    runs = f"{len(comparison.runs)} run{'s' if len(comparison.runs) > 1 else ''}"
    said = "".join(f"<li>{escape(text)}</li>" for text in sentences(comparison))
    said += "".join(f'<li class="caution">{escape(text)}</li>' for text in (*warnings, *cautions(comparison)))
    sections = [section for build in SECTIONS if (section := build(comparison)) is not None]
    made = f"Made on {datetime.now(UTC):%Y-%m-%d} by avpretrain {avpretrain.__version__}"
    lead = f'<ul class="lead">{said}</ul>' if said else ""
    return page(title, f"{runs} of audio-visual pretraining, and what they cost", lead, sections, f"{made}.")


def write_report(paths: Sequence[str | Path], out: Path, warnings: Sequence[str] = ()) -> Comparison:
    """Reads run folders and writes the page.

    Args:
        warnings: as `render` takes them.

    Raises:
        UserError: a folder is no run, or is damaged.
    """
    comparison = Comparison.of(paths)
    with atomic_path(out) as temporary:
        temporary.write_text(render(comparison, warnings), encoding="utf-8")
    return comparison
