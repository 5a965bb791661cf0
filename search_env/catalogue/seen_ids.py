"""Ids that a file has named so far, in some 40 bytes each; a dictionary takes four times as much.

An id is known by 96 bits of its hash. Among ten million ids, the chance that two are taken for one is 10⁻¹⁵.
"""

from __future__ import annotations

import hashlib
from array import array

SLOTS_BEGIN = 1 << 10
LINE_BITS = 32


class SeenIds:
    """The line of each id: a hash table with open addressing in two arrays."""

    def __init__(self) -> None:
        self._count = 0
        self._slots = SLOTS_BEGIN
        self._low, self._high = _empty(SLOTS_BEGIN)

    def __len__(self) -> int:
        return self._count

    def first_line(self, name: str, line: int) -> int | None:
        """Return the line in which an id was named first; None, and remember this line, if it is new."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        low = int.from_bytes(digest[:8], "little") | 1  # 0 marks an empty slot.
        high = int.from_bytes(digest[8:], "little")
        place = self._place(low, high)
        if self._low[place]:
            return self._high[place] & ((1 << LINE_BITS) - 1)
        self._low[place], self._high[place] = low, high << LINE_BITS | line
        self._count += 1
        if 3 * self._count > 2 * self._slots:
            self._grow()
        return None

    def _place(self, low: int, high: int) -> int:
        """Return the slot of an id, or the empty one that it would take."""
        place, last = (low >> 1) & (self._slots - 1), self._slots - 1
        while (found := self._low[place]) and not (found == low and self._high[place] >> LINE_BITS == high):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        before = zip(self._low, self._high, strict=True)
        self._slots *= 2
        self._low, self._high = _empty(self._slots)
        for low, high in before:
            if low:
                place = self._place(low, high >> LINE_BITS)
                self._low[place], self._high[place] = low, high


def _empty(slots: int) -> tuple[array[int], array[int]]:
    return array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots))
