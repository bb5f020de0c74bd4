"""Face tracks for active speaker detection, from AVA's tables and videos, from GRID, or synthetic.

python data/make_tracks.py SRC OUT [options of `avpretrain tracks`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main(["tracks", *sys.argv[1:]])
