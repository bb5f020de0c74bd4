"""Speech Commands v0.02 (Warden 2018): 105,829 words of 1 s, a file a clip, to shards.

python data/speechcommands.py FOLDER SHARDS [--download] [options of `avpretrain shards`]

FOLDER holds a folder a word and the two lists of splits; --download fetches the archive (2.4 GB) and checks its sum.
Terms: CC BY 4.0.
"""

from recipe import main

if __name__ == "__main__":  # worker processes import this file
    main("speechcommands", str(__doc__), ["--clip-seconds", "0"])
