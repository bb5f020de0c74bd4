"""Fine-tuning, shared among GPUs.

accelerate launch eval/finetune.py CKPT DATA --label NAME [options of `avpretrain finetune`]
"""

import sys

from avpretrain.cli import main

main(["finetune", *sys.argv[1:]])
