"""ESC-50 (Piczak 2015): 2,000 environmental recordings of 5 s in 50 classes, a file a clip, to shards.

python data/esc50.py FOLDER SHARDS [--download] [options of `avpretrain shards`]

FOLDER holds the repository's meta/ and audio/; --download fetches it. Terms: CC BY-NC 3.0 (its part ESC-10: CC BY 3.0).
"""

from recipe import main

if __name__ == "__main__":  # worker processes import this file
    main("esc50", str(__doc__), ["--clip-seconds", "0"])
