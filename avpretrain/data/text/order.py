"""The order of windows, a pure function of (seed, epoch, position), in constant memory for any number of them.

A Feistel network of four rounds permutes the numbers below the next power of four; those past the end are mapped again
until one falls inside (Black and Rogaway 2002, "cycle walking").
"""

from __future__ import annotations

from avpretrain.core import draws

ROUNDS = 4


class WindowOrder:
    """Which window stands at a position of training.

    Args:
        count: windows of an epoch.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._half_bits = max(1, ((count - 1).bit_length() + 1) // 2)

    def window(self, seen: int) -> int:
        """The window of the sample before which `seen` samples were seen, over all epochs."""
        epoch, position = divmod(seen, self.count)
        key = draws.sample_seed(self.seed, epoch, -1)
        place = self._permuted(position, key)
        while place >= self.count:
            place = self._permuted(place, key)
        return place

    def _permuted(self, value: int, key: int) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = value >> self._half_bits, value & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (draws.sample_seed(key, number, right) & mask)
        return left << self._half_bits | right
