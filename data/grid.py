"""GRID (Cooke et al. 2006): 1,000 sentences by each of 34 talkers, with video but of one, a sentence a clip, to shards.

python data/grid.py FOLDER SHARDS [--download] [options of `avpretrain shards`]

FOLDER holds sN/*.mpg and .align files; --download fetches both for each talker, checked by the sums of the record
on Zenodo. A talker that can't be had is left out and listed. Terms: CC BY 4.0.
"""

from recipe import main

if __name__ == "__main__":  # worker processes import this file
    main("grid", str(__doc__), ["--clip-seconds", "0", "--short-side", "112"])
