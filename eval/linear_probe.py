"""Linear probe on frozen features, shared among GPUs.

accelerate launch eval/linear_probe.py CKPT DATA --label NAME [options of `avpretrain probe`]
"""

import sys

from avpretrain.cli import main

main(["probe", *sys.argv[1:]])
