"""How routers share a limit that none of them keeps alone: each owns a part and gives what it does not need to those
who lack. Owned parts only change hands, so they never add up to more than the limit, whatever is late or lost.
(Demarcation, Barbara and Garcia-Molina 1992; escrow, O'Neil 1986.)

Nothing here waits or does I/O: :class:`~r1_cluster.routing.quota.Accounts` keeps the parts, routers carry the reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Want:
    """What a router could use of a limit now. ``first`` cannot be cut up (one request) and ``more`` can; ``waited``:
    seconds for which it has gone without."""

    first: float = 0.0
    more: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """One router's part as it reports it. ``free`` of what it ``owned`` is in no use.

    ``given`` and ``taken`` are sums since it began, by the other router's id: a lost report loses nothing.
    """

    limit: float = 0.0
    owned: float = 0.0
    free: float = 0.0
    want: Want = Want()
    given: Mapping[str, float] = field(default_factory=dict)
    taken: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Escrow:
    """What this router has given to and taken from each other one since it began."""

    given: dict[str, float] = field(default_factory=dict)
    taken: dict[str, float] = field(default_factory=dict)

    def give(self, to: str, amount: float) -> None:
        self.given[to] = self.given.get(to, 0.0) + amount

    def take(self, giver: str, given: float) -> float:
        """What is new of the sum that ``giver`` says it has given."""
        new = given - self.taken.get(giver, 0.0)
        if new <= 0:
            return 0.0
        self.taken[giver] = given
        return new

    def net(self, others: Sequence[str]) -> float:
        """Taken less given, with those others."""
        return sum(self.taken.get(other, 0.0) - self.given.get(other, 0.0) for other in others)

    def under_way(self, to: str, their: Part, me: str) -> float:
        """Given, and not in their last report yet."""
        return max(0.0, self.given.get(to, 0.0) - their.taken.get(me, 0.0))


def fair(total: float, wants: Sequence[Want], whole: bool = False) -> list[float]:
    """``total`` among ``wants``: nobody gets more than it wants. First whole requests, who has waited longest first: a
    little for each would start none. Then the rest, so that the least served has as much as can be (max-min).

    ``whole``: in integers.
    """
    got = [0.0] * len(wants)
    left = max(0.0, total)
    for i in sorted(range(len(wants)), key=lambda i: -wants[i].waited):
        if wants[i].first <= left:
            got[i] = wants[i].first
            left -= got[i]
    open_to = sorted((i for i, want in enumerate(wants) if want.more > 0), key=lambda i: wants[i].more)
    for number, i in enumerate(open_to):
        each = left / (len(open_to) - number)
        extra = min(wants[i].more, each)
        extra = float(int(extra)) if whole else extra
        got[i] += extra
        left -= extra
    return got


def gifts(me: str, parts: Mapping[str, Part], total: float, whole: bool = False) -> dict[str, float]:
    """What router ``me`` is to give to which others, from everyone's ``parts``, its own among them.

    All routers work out the same list of gifts, givers and takers each in one order, and make their own: with slightly
    different views they give a little too much or too little, and mend it the next time.
    """
    ids = sorted(parts)
    due = dict(zip(ids, fair(total, [parts[i].want for i in ids], whole), strict=True))
    lacking = {i: lack for i in ids if (lack := due[i] - parts[i].owned) > 0}
    lacking = dict(sorted(lacking.items(), key=lambda item: (-parts[item[0]].want.waited, item[0])))
    made: dict[str, float] = {}
    for giver in ids:
        spare = min(parts[giver].free, parts[giver].owned - due[giver])
        spare = float(int(spare)) if whole else spare
        for taker, lack in lacking.items():
            amount = min(spare, lack)
            amount = float(int(amount)) if whole else amount
            if amount <= 0:
                continue
            lacking[taker] -= amount
            spare -= amount
            if giver == me:
                made[taker] = amount
        if giver == me:
            break
    return made


def base(limit: int, ids: Sequence[str], me: str, routers: int) -> int:
    """This router's part of a ``limit`` in integers before any gift: equal ones, the remainder to the first ``ids``."""
    each, over = divmod(limit, max(1, routers))
    return each + (sorted(ids).index(me) < over)
