"""Whose turn it is where several routers share a fleet: each tells the others what its tenants were charged and what
waits, counts in their virtual times what was served anywhere, and gives way to what waits elsewhere and is due before.

Without it each router refills the seats that its own requests leave: who has seats keeps them, whatever the weights.
Reports are late, so two routers may see a different order for a moment; who is behind by less than a request does not
give way. Room that is left to another router and not used is used after a second: no router can keep a fleet idle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from r1_cluster.routing.fairness import FairQueue, Item

# What another router says of its queue holds so long; it says so every second, and ten times a second while any wait.
HEARD_S = 3.0
# Of one tenant's requests, one that waits elsewhere goes first if it has waited so much longer.
OLDER_S = 1.0
# Room is left to another router for so long.
LEFT_S = 1.0
# Looks for room that lie further apart than this do not tell that there was room all the time between.
LOOKS_S = 0.5
# A tenant is told of so long after it was charged last.
QUIET_S = 10.0


class Line(NamedTuple):
    """One tenant at one router, as it reports it.

    ``charged``: tokens by weight since the router began, a sum: a lost report loses nothing. ``queued``: requests that
    wait and may run; ``waited_s`` and ``priority``: of the first of them.
    """

    charged: float
    queued: int = 0
    waited_s: float = 0.0
    priority: int = 0


@dataclass(slots=True)
class _Claim:
    """What waits of a tenant at another router, which was ``charged`` so much for it then."""

    since: float
    priority: int
    charged: float
    left_at: float | None = None  # room was left to it from then on
    looked_at: float = 0.0

    def leave(self, now: float) -> bool:
        """Leave it the room that is there now. False where it has long made no use of that."""
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
    """A fair queue of one of several routers. ``since(item)``: when it began to wait, on the caller's clock;
    ``cost(item)``: tokens by weight that it is expected to use."""

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
        self._said: dict[str, tuple[float, float]] = {}  # charged by tenant, and when that was news
        self.claims = False  # whether by the last report any wait here

    def hear(self, router_id: str, lines: Mapping[str, Line], now: float) -> None:
        """Another router's report: all its tenants that wait or were charged lately."""
        peer = self._peers.setdefault(router_id, _Peer(now))
        peer.heard_at = now
        claims: dict[str, _Claim] = {}
        for tenant, said in lines.items():
            # What it was charged before we first heard of it is no news.
            self._served(tenant, said.charged - peer.charged.get(tenant, said.charged))
            peer.charged[tenant] = said.charged
            if said.queued:
                claim = claims[tenant] = _Claim(now - said.waited_s, said.priority, said.charged)
                known = peer.claims.get(tenant)
                if known is None and not self._line(tenant).heap:
                    self._begin(tenant)
                elif known is not None and known.charged == said.charged:
                    claim.left_at, claim.looked_at = known.left_at, known.looked_at
        peer.claims = claims

    def report(self, now: float, may_run: Callable[[Item], bool]) -> dict[str, Line]:
        """What the others are to know. What gives way to them is not said to wait: they would wait for it."""
        self.heads()  # what was withdrawn is gone then
        lines: dict[str, Line] = {}
        self.claims = False
        for tenant, line in self._lines.items():
            charged, at = self._said.get(tenant, (0.0, now))
            if charged != line.charged:
                at = now
            self._said[tenant] = line.charged, at
            if line.heap and may_run(line.heap[0][2]) and all(claim.idle(now) for claim in self._due(tenant, now)):
                priority, _, head = line.heap[0]
                lines[tenant] = Line(line.charged, len(line.heap), now - self._since(head), priority)
                self.claims = True
            elif line.charged and now - at < QUIET_S:
                lines[tenant] = Line(line.charged)
        return lines

    def gives_way(self, tenant: str, now: float) -> bool:
        """Whether room for the tenant's head is to be left to what waits at another router."""
        return any([claim.leave(now) for claim in self._due(tenant, now)])

    def _due(self, tenant: str, now: float) -> Iterator[_Claim]:
        """What waits elsewhere and comes before the tenant's head."""
        priority, _, head = self._lines[tenant].heap[0]
        since, virtual = self._since(head), self.virtual(tenant) - self._cost(head)
        for peer in self._peers.values():
            if now - peer.heard_at > HEARD_S:
                peer.claims = {}
            for name, claim in peer.claims.items():
                if name == tenant:
                    due = (claim.priority, claim.since + OLDER_S) < (priority, since)
                else:
                    due = self.virtual(name) < virtual
                if due:
                    yield claim

    def _begin(self, tenant: str) -> None:
        """One that waits elsewhere has been waiting."""
        if not any(tenant in peer.claims for peer in self._peers.values()):
            super()._begin(tenant)

    def _served(self, tenant: str, tokens: float) -> None:
        """By weight, elsewhere."""
        line = self._line(tenant)
        if tokens > 0:
            self._virtual = max(self._virtual, line.virtual)
        line.virtual = max(0.0, line.virtual + tokens)
