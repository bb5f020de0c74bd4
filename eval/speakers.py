"""Average precision of an active speaker detector on face tracks, shared among GPUs.

accelerate launch eval/speakers.py TRACKS CKPT [options of `avpretrain speakers`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":
    main(["speakers", *sys.argv[1:]])
