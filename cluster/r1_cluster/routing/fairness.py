"""Whose turn it is: weighted fair queueing over tokens between tenants, priorities within.

Each tenant has a virtual time: the tokens it was served, divided by its weight. The tenant that waits with the least
goes first. A request is charged its forecast when it starts and the difference to what it used when it ends, so
a tenant of long thoughts gets no more than one of short ones. A tenant that comes back from idling starts at the
virtual time of the last request that started: idling saves nothing up. (Start-time fair queueing, Goyal et al. 1996,
over tokens as in the virtual token counter of Sheng et al. 2024.)
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Line(Generic[Item]):
    virtual: float = 0.0
    charged: float = 0.0  # by weight, here, in all
    heap: list[tuple[int, int, Item]] = field(default_factory=list)
    sweep_at: int = 64  # items, at which withdrawn ones are looked for


class FairQueue(Generic[Item]):
    """Not sized by itself: the caller limits what it puts in. Withdrawn items are dropped when they come up."""

    def __init__(self, withdrawn: Callable[[Item], bool] = lambda _: False) -> None:
        self._lines: dict[str, _Line[Item]] = {}
        self._numbers = itertools.count()
        self._virtual = 0.0  # of the last item taken, at its start
        self._withdrawn = withdrawn

    def __iter__(self) -> Iterator[Item]:
        return (item for line in self._lines.values() for _, _, item in line.heap if not self._withdrawn(item))

    def put(self, tenant: str, item: Item, priority: int = 0) -> None:
        """Lower ``priority`` is sooner, within the tenant."""
        line = self._line(tenant)
        if not line.heap:
            self._begin(tenant)
        heapq.heappush(line.heap, (priority, next(self._numbers), item))
        if len(line.heap) >= line.sweep_at:
            line.heap = [entry for entry in line.heap if not self._withdrawn(entry[2])]
            heapq.heapify(line.heap)
            line.sweep_at = max(64, 2 * len(line.heap))

    def heads(self) -> list[Item]:
        """Each waiting tenant's first item, in the order of their turns. They stay until taken."""
        for line in self._lines.values():
            while line.heap and self._withdrawn(line.heap[0][2]):
                heapq.heappop(line.heap)
        # A dict keeps its order and the sort is stable: of equal tenants the one first seen goes first.
        waiting = sorted((line for line in self._lines.values() if line.heap), key=lambda line: line.virtual)
        return [line.heap[0][2] for line in waiting]

    def take(self, tenant: str, tokens: float, weight: float) -> None:
        """The tenant's head starts, and is expected to use ``tokens``."""
        line = self._lines[tenant]
        heapq.heappop(line.heap)
        self._virtual = max(self._virtual, line.virtual)
        line.virtual += tokens / weight
        line.charged += tokens / weight

    def correct(self, tenant: str, tokens: float, weight: float) -> None:
        """It used so many more (or, negative, fewer) than was charged."""
        line = self._lines.get(tenant)
        if line is not None:
            line.virtual = max(0.0, line.virtual + tokens / weight)
            line.charged += tokens / weight

    def virtual(self, tenant: str) -> float:
        """Tokens by weight that the tenant was served, as counted here."""
        line = self._lines.get(tenant)
        return line.virtual if line else 0.0

    def _line(self, tenant: str) -> _Line[Item]:
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = _Line()
        return line

    def _begin(self, tenant: str) -> None:
        """It waits, and did not a moment ago."""
        line = self._line(tenant)
        line.virtual = max(line.virtual, self._virtual)
