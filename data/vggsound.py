"""VGGSound: a folder with vggsound.csv and its videos, to shards.

python data/vggsound.py FOLDER SHARDS [options of `avpretrain shards`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main(["shards", "--source", "vggsound", *sys.argv[1:]])
