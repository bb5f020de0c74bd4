"""AudioSet (Gemmeke et al. 2017): 10 s clips of YouTube's videos with labels of 527 classes, to shards.

python data/audioset.py FOLDER SHARDS [--download] [options of `avpretrain shards`]

FOLDER holds *_segments.csv, class_labels_indices.csv and files by YouTube id. --download fetches the lists of
balanced_train and eval, and their clips by yt-dlp; --segments takes another list by path or address, such as that of
unbalanced_train. The lists are under CC BY 4.0; videos belong to those who uploaded them, and YouTube's terms of
service hold. Many are gone: unavailable.csv says which.
"""

from recipe import main

if __name__ == "__main__":  # worker processes import this file
    main("audioset", str(__doc__))
