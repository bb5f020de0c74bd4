"""Linear probe on frozen features, shared among GPUs.

accelerate launch eval/linear_probe.py CKPT DATA --label NAME [options of `avpretrain probe`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # loader processes import this file
    main(["probe", *sys.argv[1:]])
