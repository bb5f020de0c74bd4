"""AudioSet: a folder with its *_segments.csv, class_labels_indices.csv and files by YouTube id, to shards.

python data/audioset.py FOLDER SHARDS [options of `avpretrain shards`]
"""

import sys

from avpretrain.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main(["shards", "--source", "audioset", *sys.argv[1:]])
