"""Speech Commands v0.01 and v0.02: WORD/HASH_nohash_N.wav with the official testing_list.txt and validation_list.txt.

Splits: train, val, test. The folder of background noise is left out: its files are minutes long and no words.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from avpretrain.core.errors import UserError
from avpretrain.core.files import read_text
from avpretrain.data.sources.base import AUDIO_EXTENSIONS, Item, Listing, walk

LISTS = {"testing_list.txt": "test", "validation_list.txt": "val"}


def find(root: Path, table: Path | None) -> Listing:
    """Items of Speech Commands."""
    splits: dict[str, str] = {}
    for name, split in LISTS.items():
        if not (root / name).is_file():
            raise UserError(f"{root} has no {name}; is it the folder of Speech Commands?")
        splits |= {line.strip(): split for line in read_text(root / name).splitlines() if line.strip()}
    listing = Listing(items=[])
    for path in walk(root):
        parts = PurePosixPath(path)
        if (
            len(parts.parts) != 2
            or parts.suffix.lower() not in AUDIO_EXTENSIONS
            or path.startswith("_background_noise_")
        ):
            listing.ignored += parts.suffix.lower() in AUDIO_EXTENSIONS
            continue
        labels: dict[str, str | list[str]] = {"class": parts.parts[0], "speaker": parts.stem.split("_")[0]}
        split = splits.pop(path, "train")
        listing.items.append(Item(path=path, labels=labels, split=split, license="CC BY 4.0", need="audio"))
    listing.missing = sorted(splits)
    return listing
