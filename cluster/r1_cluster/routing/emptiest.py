"""The emptiest of many ranks, kept in buckets: a change moves one entry, a look reads the first few."""

from __future__ import annotations

import math

BUCKETS = 512  # to a full batch; what queues beyond lies in buckets of the same width


class Emptiest:
    """Rows by their load as a share of their seats, in steps of 1/``BUCKETS``; of one bucket, the one that came into it
    first is first."""

    __slots__ = ("_buckets", "_lowest", "_of")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[int, None]] = {}
        self._of: dict[int, int] = {}
        self._lowest = 0  # no bucket below it holds any

    def put(self, row: int, share: float) -> None:
        """``share`` infinite: it is not to be found."""
        if share == math.inf:
            self.discard(row)
            return
        bucket = int(share * BUCKETS)
        old = self._of.get(row)
        if old == bucket:
            return
        if old is not None:
            del self._buckets[old][row]
        self._buckets.setdefault(bucket, {})[row] = None
        self._of[row] = bucket
        if bucket < self._lowest:
            self._lowest = bucket

    def discard(self, row: int) -> None:
        bucket = self._of.pop(row, None)
        if bucket is not None:
            del self._buckets[bucket][row]

    def first(self, most: int) -> list[int]:
        """Up to ``most`` rows."""
        found: list[int] = []
        bucket, left = self._lowest, len(self._of)
        empty = True
        while left and len(found) < most:
            held = self._buckets.get(bucket)
            if held:
                empty = False
                left -= len(held)
                found += held
            elif empty:
                self._lowest = bucket + 1
            bucket += 1
        del found[most:]
        return found
