"""Measures what `--transcode train` saves and costs, and writes it as JSON; takes some seconds for each video.

python docs/studies/measure_transcode.py VIDEOS [--out docs/results/transcode.json] [--enlarge]

--enlarge makes 720p files of small ones.
"""

import tempfile
from pathlib import Path
from typing import Annotated

from tyro import cli
from tyro.conf import Positional, arg

from avpretrain.bench.transcode_cost import enlarge, measure_transcode
from avpretrain.core.files import write_json
from avpretrain.data.sources import find_items
from avpretrain.data.write.transcode import TranscodeConfig


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
