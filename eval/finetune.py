"""Fine-tuning, shared among GPUs.

accelerate launch eval/finetune.py CKPT DATA --label NAME [options of `avpretrain finetune`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # loader processes import this file
    main(["finetune", *sys.argv[1:]])
