"""Speech Commands: its folders of words and two lists, a file a clip, to shards.

python data/speechcommands.py FOLDER SHARDS [options of `avpretrain shards`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main(["shards", "--source", "speechcommands", "--clip-seconds", "0", *sys.argv[1:]])
