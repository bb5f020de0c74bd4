"""ESC-50: its repository's meta/ and audio/, a file a clip, to shards.

python data/esc50.py FOLDER SHARDS [options of `avpretrain shards`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main(["shards", "--source", "esc50", "--clip-seconds", "0", *sys.argv[1:]])
