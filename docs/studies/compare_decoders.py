"""Measures decord against PyAV, in speed and on damaged clips, and writes it as JSON.

    python docs/studies/compare_decoders.py VIDEOS [--out docs/results/decoders.json]

Reads every video in VIDEOS; takes some seconds for each.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from avpretrain.bench.decoders import compare_decoders
from avpretrain.core.files import write_json
from avpretrain.data.sources import find_items


def main(videos: tyro.conf.Positional[Path], out: Path = Path("decoders.json")) -> None:
    items = find_items("folder", videos, None).items
    write_json(out, compare_decoders([videos / item.path for item in items]))


if __name__ == "__main__":
    tyro.cli(main)
