"""Free Spoken Digit Dataset: 3,000 digits by six speakers, a file a clip, to shards.

python data/fsdd.py FOLDER SHARDS [--download] [options of `avpretrain shards`]

FOLDER holds recordings/; --download fetches the repository. Terms: CC BY-SA 4.0.
"""

from recipe import main

if __name__ == "__main__":  # worker processes import this file
    main("fsdd", str(__doc__), ["--clip-seconds", "0"])
