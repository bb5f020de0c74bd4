"""Measures what `--transcode train` saves and costs, and writes it as JSON; takes some seconds for each video.

python data/measure_transcode.py VIDEOS [--out docs/results/transcode.json] [--enlarge: make 720p files of small ones]
"""

import tempfile
from pathlib import Path
from typing import Annotated

from tyro import cli
from tyro.conf import Positional, arg

from avpretrain.data.sources import find_items
from avpretrain.data.transcode import TranscodeConfig
from avpretrain.efficiency.transcode_cost import enlarge, measure_transcode
from avpretrain.files import write_json


def main(
    videos: Positional[Path],
    out: Path = Path("transcode.json"),
    large: Annotated[bool, arg(name="enlarge")] = False,
) -> None:
    paths = [videos / item.path for item in find_items("folder", videos, None).items]
    with tempfile.TemporaryDirectory() as folder:
        paths = [enlarge(path, Path(folder) / f"{i}.mp4") for i, path in enumerate(paths)] if large else paths
        write_json(out, {"enlarged_to_720p": large, **measure_transcode(paths, TranscodeConfig())})


cli(main)
