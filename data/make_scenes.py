"""Synthetic scenes with labels, as mp4 files.

python data/make_scenes.py SCENES [options of `avpretrain synth`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main(["synth", *sys.argv[1:]])
