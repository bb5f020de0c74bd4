"""Measures what `--transcode train` saves and costs, and writes it as JSON.

    python data/measure_transcode.py VIDEOS [--out docs/results/transcode.json] [--enlarge]

Reads every video in VIDEOS; takes some seconds for each. --enlarge makes 720p files of small ones first (see the docs).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from avpretrain.data.sources import find_items
from avpretrain.data.transcode import TranscodeConfig
from avpretrain.efficiency.transcode_cost import enlarge, measure_transcode
from avpretrain.files import write_json


def main(
    videos: tyro.conf.Positional[Path],
    out: Path = Path("transcode.json"),
    enlarge_: Annotated[bool, tyro.conf.arg(name="enlarge")] = False,
) -> None:
    paths = [videos / item.path for item in find_items("folder", videos, None).items]
    with tempfile.TemporaryDirectory() as folder:
        if enlarge_:
            paths = [enlarge(path, Path(folder) / f"{i}.mp4") for i, path in enumerate(paths)]
        write_json(out, {"enlarged_to_720p": enlarge_, **measure_transcode(paths, TranscodeConfig())})


if __name__ == "__main__":
    tyro.cli(main)
