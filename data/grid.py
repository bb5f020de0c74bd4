"""GRID: sN/*.mpg and their .align files, a sentence a clip, to shards.

python data/grid.py FOLDER SHARDS [options of `avpretrain shards`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main(["shards", "--source", "grid", "--clip-seconds", "0", "--short-side", "112", *sys.argv[1:]])
