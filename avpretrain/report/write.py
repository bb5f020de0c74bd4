"""The report: one HTML file that compares runs, readable anywhere, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import avpretrain
from avpretrain.core.files import atomic_path
from avpretrain.report import page
from avpretrain.report.comparison import Comparison, cautions, sentences, summary_table
from avpretrain.report.sections import SECTIONS

__all__ = ["Comparison", "render", "summary_table", "write_report"]


def render(comparison: Comparison, warnings: Sequence[str] = ()) -> str:
    """The page as HTML.

    Args:
        warnings: what keeps the numbers from being read as they stand, beside what the runs themselves tell.
    """
    names, count = [group.name for group in comparison.groups], len(comparison.runs)
    values = {
        "title": names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}",
        "subtitle": f"{count} run{'s' if count > 1 else ''} of pretraining: cost, curves and results",
        "sentences": sentences(comparison),
        "cautions": [*warnings, *cautions(comparison)],
        "sections": [section for build in SECTIONS if (section := build(comparison)) is not None],
        "footer": f"Made on {datetime.now(UTC):%Y-%m-%d} by avpretrain {avpretrain.__version__}.",
    }
    return page.render("page.html", values)


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
