"""A list of evaluations of one checkpoint, as one table; shared among GPUs.

accelerate launch eval/evaluate.py CKPT LIST --shards SHARDS --out OUT [options of `avpretrain evaluate`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # loader processes import this file
    main(["evaluate", *sys.argv[1:]])
