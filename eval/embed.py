"""Vectors of audio and video files, shared among GPUs.

accelerate launch eval/embed.py CKPT FILES... --out x.npz [options of `avpretrain embed`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # loader processes import this file
    main(["embed", *sys.argv[1:]])
