"""A stopwatch for work that has parts."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds by name: each lap is charged with the time since the one before."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._before = time.perf_counter()

    def lap(self, name: str) -> None:
        """Charges `name` with the time since the last lap."""
        now = time.perf_counter()
        self.spent[name] = self.spent.get(name, 0.0) + now - self._before
        self._before = now
