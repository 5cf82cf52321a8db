"""Whose turn it is where several routers share a fleet. Each tells the others what its tenants were charged and what
waits; each counts in its virtual times what was served anywhere, and leaves room to what waits elsewhere and is due
before its own.

Without that every router refills the seats that its own requests leave, and who has seats keeps them, whatever the
weights. Nothing here is exact: reports are late, so a request may start before one that is due by a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from r1_cluster.routing.fairness import FairQueue, Item

# Who is ahead by no more than so many of its requests does not give way: routers that see each other's starts a moment
# late would all wait for one another.
SLACK = 2.0
# Of one tenant's requests, one that waits elsewhere goes first if it has waited so much longer.
OLDER_S = 1.0
# Room is left to another router for so long: whatever keeps that from using it, it keeps no fleet idle.
LEFT_S = 1.0
# Looks for room that lie further apart do not tell that there was room all the time between.
LOOKS_S = 0.5
# What another router said counts so long; it says so every second, and ten times a second while any wait.
HEARD_S = 3.0
# A tenant is spoken of so long after it was charged last.
QUIET_S = 10.0
# The part of a difference between two routers' counts that is given up with each report.
AGREE = 0.25
MOST_PEERS = 256  # those heard last are known


class Line(NamedTuple):
    """One tenant at one router, as it reports it.

    ``charged``: tokens by weight since the router began, a sum: a lost report loses nothing. ``virtual``: its virtual
    time as that router has it, of which only the differences between tenants mean anything. ``queued`` requests wait
    and may run; ``waited_s`` and ``priority`` are the first one's. ``ready``: it would start now if there were room,
    and does not itself give way.
    """

    charged: float
    virtual: float
    queued: int = 0
    waited_s: float = 0.0
    priority: int = 0
    ready: bool = False


@dataclass(slots=True)
class _Claim:
    """What waits of a tenant at another router, ``since`` when, and what it was ``charged`` then."""

    since: float
    priority: int
    ready: bool
    charged: float
    left_at: float | None = None  # room was left to it from then on
    looked_at: float = 0.0

    def leave(self, now: float) -> bool:
        """Leave it the room that is there now. False where it has made no use of that for too long."""
        if self.left_at is None or now - self.looked_at > LOOKS_S:
            self.left_at = now
        self.looked_at = now
        return not self.idle(now)

    def idle(self, now: float) -> bool:
        return self.left_at is not None and now - self.looked_at <= LOOKS_S and now - self.left_at >= LEFT_S


@dataclass(slots=True)
class _Peer:
    heard_at: float
    charged: dict[str, float] = field(default_factory=dict)
    claims: dict[str, _Claim] = field(default_factory=dict)


class SharedQueue(FairQueue[Item]):
    """The fair queue of one of several routers; of one that hears of no other a plain one. ``since(item)``: when it
    began to wait, on the caller's clock; ``cost(item)``: tokens by weight that it is expected to use."""

    def __init__(
        self,
        since: Callable[[Item], float],
        cost: Callable[[Item], float],
        withdrawn: Callable[[Item], bool] = lambda _: False,
    ) -> None:
        super().__init__(withdrawn)
        self._since = since
        self._cost = cost
        self._peers: dict[str, _Peer] = {}
        self._charged: dict[str, tuple[float, float]] = {}  # by tenant, and when it was so much first
        self.said_waiting = False  # by the last report something waits here

    def hear(self, router_id: str, lines: Mapping[str, Line], now: float) -> None:
        """Another router's report: all its tenants that wait or were charged lately."""
        peer = self._peers.pop(router_id, None) or _Peer(now)
        self._peers[router_id] = peer
        if len(self._peers) > MOST_PEERS:
            del self._peers[next(iter(self._peers))]
        peer.heard_at = now
        claims: dict[str, _Claim] = {}
        for tenant, said in lines.items():
            # What it was charged before we first heard of it is no news.
            self._served(tenant, said.charged - peer.charged.get(tenant, said.charged))
            peer.charged[tenant] = said.charged
            if said.queued:
                claim = claims[tenant] = _Claim(now - said.waited_s, said.priority, said.ready, said.charged)
                known = peer.claims.get(tenant)
                if known is None and not self._line(tenant).heap:
                    self._begin(tenant)
                elif known is not None and known.charged == said.charged:
                    claim.left_at, claim.looked_at = known.left_at, known.looked_at
        peer.claims = claims
        self._agree(lines)

    def report(self, now: float, may_run: Callable[[Item], bool]) -> dict[str, Line]:
        """What the others are to know."""
        self.heads()  # what was withdrawn is gone then
        lines: dict[str, Line] = {}
        self.said_waiting = False
        for tenant, line in self._lines.items():
            charged, at = self._charged.get(tenant, (0.0, now))
            if charged != line.charged:
                at = now
            self._charged[tenant] = line.charged, at
            if line.heap and may_run(line.heap[0][2]):
                priority, _, head = line.heap[0]
                # Nobody gives way to what itself gives way, or both would wait.
                ready = all(claim.idle(now) for claim in self._due(tenant, now))
                waited_s = now - self._since(head)
                lines[tenant] = Line(line.charged, line.virtual, len(line.heap), waited_s, priority, ready)
                self.said_waiting = True
            elif line.charged and now - at < QUIET_S:
                lines[tenant] = Line(line.charged, line.virtual)
        return lines

    def gives_way(self, tenant: str, now: float) -> bool:
        """Whether room that is there for the tenant's head is to be left to what waits at another router."""
        left = [claim.leave(now) for claim in self._due(tenant, now)]  # to each of them
        return any(left)

    def _due(self, tenant: str, now: float) -> Iterator[_Claim]:
        """What waits elsewhere and comes before the tenant's head."""
        priority, _, head = self._lines[tenant].heap[0]
        since, virtual = self._since(head), self.virtual(tenant) - SLACK * self._cost(head)
        for peer in self._peers.values():
            if now - peer.heard_at > HEARD_S:
                peer.claims = {}
            for name, claim in peer.claims.items():
                if name == tenant:
                    # Ready or not: where its oldest request waits it is decided how far the tenant is.
                    due = (claim.priority, claim.since + OLDER_S) < (priority, since)
                else:
                    due = claim.ready and self.virtual(name) < virtual
                if due:
                    yield claim

    def _begin(self, tenant: str) -> None:
        """As of old where nobody waits elsewhere. Where it does, it has waited; else it comes no later than any."""
        waiting = {name for peer in self._peers.values() for name in peer.claims}
        if not waiting:
            super()._begin(tenant)
        elif tenant not in waiting:
            least = min(line.virtual for name, line in self._lines.items() if line.heap or name in waiting)
            line = self._line(tenant)
            line.virtual = max(line.virtual, min(self._virtual, least))

    def _served(self, tenant: str, tokens: float) -> None:
        """By weight, elsewhere."""
        line = self._line(tenant)
        if tokens > 0:
            self._virtual = max(self._virtual, line.virtual)
        line.virtual = max(0.0, line.virtual + tokens)

    def _agree(self, lines: Mapping[str, Line]) -> None:
        """Bring the differences between tenants that wait nearer to the other router's: what only one of them heard of
        would set them apart for ever."""
        waiting = [tenant for tenant, said in lines.items() if said.queued or self._line(tenant).heap]
        if len(waiting) < 2:
            return
        apart = {tenant: lines[tenant].virtual - self.virtual(tenant) for tenant in waiting}
        mean = sum(apart.values()) / len(apart)
        for tenant, by in apart.items():
            self._line(tenant).virtual += AGREE * (by - mean)
