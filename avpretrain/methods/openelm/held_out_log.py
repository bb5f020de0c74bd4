"""What was measured on held-out text while a run trained: `held_out.jsonl` in its folder. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from avpretrain.core.files import atomic_path

HELD_OUT_NAME = "held_out.jsonl"
"""A line for each measurement, in order of windows seen."""


def write_held_out(run: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes all lines anew."""
    with atomic_path(run / HELD_OUT_NAME) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_held_out(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's held-out measurements, up to the first that is damaged; none where none was made."""
    path, found = run / HELD_OUT_NAME, []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not all(
            isinstance(line.get(k), int | float) for k in ("seen", "bits_per_byte")
        ):
            break
        found.append(line)
    return found
