"""Audio-visual retrieval without training, shared among GPUs.

accelerate launch eval/retrieve.py CKPT DATA [options of `avpretrain retrieve`]
"""

import sys

from avpretrain.cli import main

main(["retrieve", *sys.argv[1:]])
