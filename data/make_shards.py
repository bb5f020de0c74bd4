"""A folder of videos to shards and a manifest.

python data/make_shards.py VIDEOS SHARDS [options of `avpretrain shards`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main(["shards", *sys.argv[1:]])
