"""Free Spoken Digit Dataset: its recordings/, a file a clip, to shards.

python data/fsdd.py FOLDER SHARDS [options of `avpretrain shards`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main(["shards", "--source", "fsdd", "--clip-seconds", "0", *sys.argv[1:]])
