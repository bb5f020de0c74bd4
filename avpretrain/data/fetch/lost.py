"""The list of what a data set's owner promises and no server gives, kept while a download runs."""

from __future__ import annotations

import csv
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from avpretrain.core.files import atomic_path

LIST_NAME = "unavailable.csv"
COLUMNS = ("item", "final", "reason")


@dataclass(frozen=True, slots=True)
class Lost:
    """A file or clip that could not be had."""

    item: str
    final: bool
    """Whether it is gone for good, and so not asked for again."""
    reason: str


class LostList:
    """`unavailable.csv` of a folder: a row an item, written as soon as it is known, the last row of an item holds."""

    def __init__(self, folder: Path) -> None:
        self.path, self._lock = folder / LIST_NAME, threading.Lock()
        self.items: dict[str, Lost] = {}
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.reader(file):
                    if len(row) == len(COLUMNS) and tuple(row) != COLUMNS:
                        self.items[row[0]] = Lost(row[0], row[1] == "yes", row[2])

    def add(self, lost: Lost) -> None:
        """Notes an item. Safe from any thread."""
        with self._lock:
            self.items[lost.item] = lost
            is_new = not self.path.is_file()
            with self.path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(COLUMNS)
                writer.writerow(_row(lost))

    def remove(self, item: str) -> None:
        """Takes an item off the list, which is written by `close`."""
        with self._lock:
            self.items.pop(item, None)

    def is_gone(self, item: str) -> bool:
        """Whether an earlier run learned that it is gone for good."""
        return item in self.items and self.items[item].final

    def close(self) -> None:
        """Writes the list with one row for each item; an empty one is removed."""
        if not self.items:
            self.path.unlink(missing_ok=True)
            return
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(_row(lost) for _, lost in sorted(self.items.items()))

    def reasons(self, most: int = 5) -> list[str]:
        """The most frequent reasons, a line each."""
        counts = Counter((lost.reason, lost.final) for lost in self.items.values())
        return [
            f"{count} x {reason}" + ("" if final else " (tried again at the next run)")
            for (reason, final), count in counts.most_common(most)
        ]


def _row(lost: Lost) -> tuple[str, str, str]:
    return lost.item, "yes" if lost.final else "no", " ".join(lost.reason.split())
