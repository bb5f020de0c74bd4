"""The data of vits_noise and vits_real in configs/ablations: synthetic scenes of 2 s, and public sets of a folder.

python data/vits_real.py PACKS SHARDS [--clips N]

PACKS holds the folders grid_av, fsdd, speechcommands3 and esc10, each with a metadata.csv (docs/DATA.md, "folder").
Writes a sharded data set under each name, and scenes, to SHARDS; what is done is skipped, what was interrupted resumes.
"""

import argparse
from pathlib import Path

from avpretrain.cli.main import main

SIZE = "72"
"""Shorter side in pixels; the model's input has 64."""


def prepare(packs: Path, shards: Path, clips: int) -> None:
    scenes = shards / "scenes_files"
    main(["synth", str(scenes), "--clips", str(clips), "--seconds", "2", "--size", SIZE, "--fps", "12"])
    folders = {"scenes": scenes, **{name: packs / name for name in ("grid_av", "fsdd", "speechcommands3", "esc10")}}
    for name, folder in folders.items():
        out = shards / name.removesuffix("_av")
        main(["shards", str(folder), str(out), "--clip-seconds", "0", "--short-side", SIZE, "--fps", "12"])


if __name__ == "__main__":  # worker processes import this file
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", type=Path, metavar="PACKS")
    parser.add_argument("shards", type=Path, metavar="SHARDS")
    parser.add_argument("--clips", type=int, default=6000, help="synthetic scenes")
    given = parser.parse_args()
    prepare(given.packs, given.shards, given.clips)
