"""Free Spoken Digit Dataset: recordings/DIGIT_SPEAKER_INDEX.wav; indices 0 to 4 are the official test split."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from avpretrain.data.sources.base import Item, Listing, walk

TEST_INDICES = 5


def find(root: Path, table: Path | None) -> Listing:
    """Items of FSDD; missing are the gaps between each speaker's first and last recording of a digit."""
    listing = Listing(items=[])
    last: dict[tuple[str, str], int] = {}
    present: set[tuple[str, str, int]] = set()
    for path in walk(root):
        match = re.fullmatch(r"(\d)_([^_]+)_(\d+)\.(wav|flac)", PurePosixPath(path).name)
        if match is None:
            continue
        digit, speaker, index = match[1], match[2], int(match[3])
        last[digit, speaker] = max(index, last.get((digit, speaker), 0))
        present.add((digit, speaker, index))
        split = "test" if index < TEST_INDICES else "train"
        labels: dict[str, str | list[str]] = {"class": digit, "speaker": speaker}
        listing.items.append(Item(path=path, labels=labels, split=split, license="CC BY-SA 4.0", need="audio"))
    wanted = [(digit, speaker, i) for (digit, speaker), end in sorted(last.items()) for i in range(end + 1)]
    listing.missing = [f"{d}_{s}_{i}.wav" for d, s, i in wanted if (d, s, i) not in present]
    return listing
