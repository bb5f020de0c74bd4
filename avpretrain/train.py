"""`accelerate launch -m avpretrain.train CONFIG ...`: the same as `avpretrain train CONFIG ...`, on every rank."""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
