"""Vectors of audio and video files.

python eval/embed.py CKPT FILES... --out x.npz [options of `avpretrain embed`]
"""

import sys

from avpretrain.cli import main

main(["embed", *sys.argv[1:]])
