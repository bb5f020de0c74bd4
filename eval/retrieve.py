"""Audio-visual retrieval without training, shared among GPUs.

accelerate launch eval/retrieve.py CKPT DATA [options of `avpretrain retrieve`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # loader processes import this file
    main(["retrieve", *sys.argv[1:]])
