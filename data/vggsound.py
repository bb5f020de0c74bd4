"""VGGSound (Chen et al. 2020): 10 s clips of YouTube's videos with one of 309 classes, to shards.

python data/vggsound.py FOLDER SHARDS [--download] [options of `avpretrain shards`]

FOLDER holds vggsound.csv and videos by YouTube id. --download fetches the list, and its clips by yt-dlp. The list is
under CC BY 4.0; videos belong to those who uploaded them, and YouTube's terms of service hold. Many are gone:
unavailable.csv says which.
"""

from recipe import main

if __name__ == "__main__":  # worker processes import this file
    main("vggsound", str(__doc__))
