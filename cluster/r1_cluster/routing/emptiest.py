"""The emptiest of many ranks, kept in buckets: a change moves one entry, a look reads the first few."""

from __future__ import annotations

import math
from bisect import bisect_left, insort

BUCKETS = 512  # to a full batch; what queues beyond lies in buckets of the same width


class Emptiest:
    """Rows by their load as a share of their seats, in steps of 1/``BUCKETS``; of one bucket, the one that came into it
    first is first."""

    __slots__ = ("_buckets", "_held", "_of")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[int, None]] = {}  # those that hold any
        self._held: list[int] = []  # their numbers, in order
        self._of: dict[int, int] = {}

    def put(self, row: int, share: float) -> None:
        """``share`` infinite: it is not to be found."""
        if share == math.inf:
            self.discard(row)
            return
        bucket = int(share * BUCKETS)
        if self._of.get(row) == bucket:
            return
        self.discard(row)
        rows = self._buckets.get(bucket)
        if rows is None:
            self._buckets[bucket] = {row: None}
            insort(self._held, bucket)
        else:
            rows[row] = None
        self._of[row] = bucket

    def discard(self, row: int) -> None:
        bucket = self._of.pop(row, None)
        if bucket is None:
            return
        rows = self._buckets[bucket]
        del rows[row]
        if not rows:
            del self._buckets[bucket], self._held[bisect_left(self._held, bucket)]

    def first(self, most: int) -> list[int]:
        """Up to ``most`` rows."""
        found: list[int] = []
        for bucket in self._held:
            found += self._buckets[bucket]
            if len(found) >= most:
                break
        del found[most:]
        return found
