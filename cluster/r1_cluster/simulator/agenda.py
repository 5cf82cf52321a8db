"""The simulation's clock and what is still to happen, in the order of its times."""

from __future__ import annotations

import heapq
import itertools
from enum import IntEnum


class Kind(IntEnum):
    """What an event is; the number beside it says of which gang, failure or drain."""

    STEP = 0
    LOOK = 1
    FAIL = 2
    DRAIN = 3
    STOP = 4
    UP = 5
    SCALE = 6


Event = tuple[float, int, int, int]  # when, number, kind, which


class Agenda:
    """``now`` in seconds. Of events at the same time the one that was pushed first comes first."""

    __slots__ = ("_numbers", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[Event] = []
        self._numbers = itertools.count()

    def push(self, at: float, kind: int, which: int) -> None:
        heapq.heappush(self.events, (at, next(self._numbers), kind, which))
