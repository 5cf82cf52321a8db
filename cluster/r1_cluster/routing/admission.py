"""Who is let in, who waits, who is refused and until when. A state machine without clock or I/O.

``offer`` reserves a request's forecast and queues it, or refuses it by name. ``turns`` says whose turn it is, ``start``
and ``end`` move it on; ``end`` returns what was reserved and not used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from r1_cluster.routing.budget import Asked, Budget
from r1_cluster.routing.drain import Drain
from r1_cluster.routing.kv import Shape
from r1_cluster.routing.prefix import Chain
from r1_cluster.routing.quota import Accounts
from r1_cluster.routing.tenants import Tenant
from r1_cluster.routing.turns import Line, SharedQueue

UNASKED = Asked()


class Reason(StrEnum):
    TENANT_QUOTA = "tenant_quota"
    FLEET_SATURATED = "fleet_saturated"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    TOO_LONG_FOR_PLAN = "too_long_for_plan"


class Refusal(NamedTuple):
    """``retry_after``: seconds after which it may succeed; None where it never will."""

    reason: Reason
    message: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """``max_queued`` requests wait in the router, and none that would wait longer than ``max_wait_s``.

    A request that does not fit yet lets those behind it pass for ``patience_s``, then no more.
    ``full_at``: the saturation at which the fleet is full and nothing waits; the rest up to 1 is the queue filling.
    """

    max_queued: int = 1024
    max_wait_s: float = 300.0
    patience_s: float = 10.0
    full_at: float = 0.8
    min_retry_s: float = 1.0
    max_retry_s: float = 300.0


class Arrival(NamedTuple):
    """A request as it comes. ``deadline`` is on the caller's clock. ``priority``: lower is sooner, within a tenant."""

    tenant: Tenant
    model: str
    prompt_tokens: int
    max_tokens: int
    asked: Asked = UNASKED
    n: int = 1
    priority: int = 0
    deadline: float = math.inf
    opens_thought: bool = True
    chain: Chain = ()


class Room(Protocol):
    """The fleet as admission sees it, asked for what it needs: some of it takes time to tell."""

    @property
    def largest(self) -> int:
        """KV tokens of the largest rank."""

    @property
    def pressure(self) -> float:
        """Forecast KV over all KV."""

    def fastest_step_s(self) -> float: ...


class Estimate(NamedTuple):
    """A request's forecast: its budget as things are, what each choice may grow to, tokens it will likely use in all
    (``tokens``) and generate at the least before its first choice is done (``at_least``)."""

    budget: Budget
    shape: Shape
    tokens: int
    at_least: int


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was let in. ``estimate`` is as of its offer, and from its start on what it started with."""

    arrival: Arrival
    estimate: Estimate
    queued_at: float
    state: State = State.QUEUED
    started_at: float | None = None
    placements: list[int] = field(default_factory=list)


class Admission:
    """One model's queue. ``accounts`` are shared between models."""

    def __init__(self, rules: Rules, accounts: Accounts, drain: Drain | None = None) -> None:
        self.rules = rules
        self.queued = 0
        self._queued_tokens = 0.0
        self._accounts = accounts
        self._drain = drain or Drain()
        self._queue: SharedQueue[Ticket] = SharedQueue(
            since=lambda ticket: ticket.queued_at,
            cost=lambda ticket: ticket.estimate.tokens / ticket.arrival.tenant.weight,
            withdrawn=lambda ticket: ticket.state is not State.QUEUED,
        )

    def saturation(self, room: Room, now: float, besides: Ticket | None = None, at_least: float = 0.0) -> float:
        """0 idle; ``full_at`` as much as fits and none waiting ``besides`` that one; 1 about to refuse. What lies below
        ``at_least`` counts as that, and costs nothing to tell."""
        rules = self.rules
        queued = self.queued - (besides is not None)
        if not queued:
            return at_least if at_least >= rules.full_at else max(at_least, rules.full_at * min(1.0, room.pressure))
        tokens = self._queued_tokens - (besides.estimate.tokens if besides else 0)
        fill = max(queued / rules.max_queued, self.wait_s(now, tokens) / rules.max_wait_s)
        return max(at_least, rules.full_at + (1.0 - rules.full_at) * min(1.0, fill))

    def wait_s(self, now: float, tokens_ahead: float | None = None) -> float:
        """How long what is queued takes to start, at the rate at which the fleet frees tokens. 0 if not known yet."""
        rate = self._drain.rate(now)
        ahead = self._queued_tokens if tokens_ahead is None else tokens_ahead
        return ahead / rate if rate else 0.0

    def offer(self, arrival: Arrival, estimate: Estimate, room: Room, now: float) -> Ticket | Refusal:
        """Let a request in to wait for its turn, or refuse it."""
        refusal = (
            self._too_long(arrival, room)
            or self._over_quota(arrival, estimate, now)
            or self._saturated(arrival, now)
            or self._too_late(arrival, estimate, room, now)
        )
        if refusal is not None:
            return refusal
        tenant = arrival.tenant
        self._accounts.reserve(tenant.name, estimate.tokens, tenant.quota, now)
        self._accounts.of(tenant.name).queued += 1
        ticket = Ticket(arrival, estimate, queued_at=now)
        self.queued += 1
        self._queued_tokens += estimate.tokens
        self._queue.put(tenant.name, ticket, arrival.priority)
        return ticket

    def turns(self, now: float) -> Iterator[Ticket]:
        """The requests that may start, in the order of their turns; tenants at their limit of running ones left out."""
        return (ticket for ticket in self._queue.heads() if self._may_run(ticket, now))

    def stops(self, ticket: Ticket, now: float) -> bool:
        """Whether ``ticket``, which does not fit yet, lets no others pass: it does, but not long. Once it has waited
        ``patience_s`` nothing passes it, or short calls would starve the long thoughts."""
        return now - ticket.queued_at >= self.rules.patience_s

    def gives_way(self, ticket: Ticket, now: float) -> bool:
        """Whether ``ticket``, one of the turns for which there is room, leaves that to another router's."""
        return self._queue.gives_way(ticket.arrival.tenant.name, now)

    @property
    def contended(self) -> bool:
        """Whether other routers should hear of the queue at once: something waits, or they still think so."""
        return self.queued > 0 or self._queue.said_waiting

    def report(self, now: float) -> dict[str, Line]:
        """By tenant, what other routers with the same ranks are to know."""
        return self._queue.report(now, lambda ticket: self._may_run(ticket, now))

    def hear(self, router_id: str, lines: Mapping[str, Line], now: float) -> None:
        """Another router's report."""
        self._queue.hear(router_id, lines, now)

    def start(self, ticket: Ticket, estimate: Estimate, now: float) -> None:
        """``ticket``, one of the turns, runs; ``estimate`` is its forecast with the budget it starts with."""
        tenant = ticket.arrival.tenant
        self._leave_queue(ticket)
        account = self._accounts.of(tenant.name)
        account.running += 1
        self._accounts.reserve(tenant.name, estimate.tokens - ticket.estimate.tokens, tenant.quota, now)
        self._queue.take(tenant.name, estimate.tokens, tenant.weight)
        ticket.estimate, ticket.state, ticket.started_at = estimate, State.RUNNING, now

    def end(self, ticket: Ticket, used_tokens: int, now: float) -> None:
        """It finished, failed or was cancelled, having used so many tokens. Harmless the second time."""
        tenant, charged = ticket.arrival.tenant, ticket.estimate.tokens
        if ticket.state is State.QUEUED:
            self._leave_queue(ticket)
        elif ticket.state is State.RUNNING:
            self._accounts.of(tenant.name).running -= 1
            self._queue.correct(tenant.name, used_tokens - charged, tenant.weight)
            self._drain.freed(used_tokens, now)
        else:
            return
        ticket.state = State.ENDED
        self._accounts.reserve(tenant.name, used_tokens - charged, tenant.quota, now)

    def overdue(self, ticket: Ticket, room: Room, now: float) -> Refusal | None:
        """Whether a queued request can no longer be done in time."""
        return self._too_late(ticket.arrival, ticket.estimate, room, now, waits=False)

    def _may_run(self, ticket: Ticket, now: float) -> bool:
        tenant = ticket.arrival.tenant
        return self._accounts.may_run(tenant.name, tenant.quota, now)

    def _too_long(self, arrival: Arrival, room: Room) -> Refusal | None:
        longest, largest = arrival.prompt_tokens + arrival.max_tokens, room.largest
        if not largest or longest <= largest:
            return None
        return Refusal(
            Reason.TOO_LONG_FOR_PLAN,
            f"the prompt's {arrival.prompt_tokens} tokens and max_tokens {arrival.max_tokens} exceed the {largest} "
            "that a rank's cache holds: shorten the prompt or lower max_tokens",
        )

    def _over_quota(self, arrival: Arrival, estimate: Estimate, now: float) -> Refusal | None:
        tenant, quota = arrival.tenant, arrival.tenant.quota
        wait = self._accounts.wait_for(tenant.name, estimate.tokens, quota, now)
        if wait > 0:
            return Refusal(
                Reason.TENANT_QUOTA,
                f"tenant {tenant.name} has used its {quota.tokens_per_minute} tokens a minute: "
                f"retry in {self._retry(wait):.0f} s, or lower max_tokens or the thinking budget",
                self._retry(wait),
            )
        if not self._accounts.may_wait(tenant.name, quota, now):
            retry = self._retry(self.wait_s(now, estimate.tokens))
            return Refusal(
                Reason.TENANT_QUOTA,
                f"tenant {tenant.name} has {quota.max_queued} requests waiting, its limit: retry in {retry:.0f} s",
                retry,
            )
        return None

    def _saturated(self, arrival: Arrival, now: float) -> Refusal | None:
        wait = self.wait_s(now)
        if self.queued < self.rules.max_queued and wait <= self.rules.max_wait_s:
            return None
        retry = self._retry(wait / 2)  # by then the queue is half as long
        return Refusal(
            Reason.FLEET_SATURATED,
            f"{self.queued} requests wait for {arrival.model}, as many as may: retry in {retry:.0f} s",
            retry,
        )

    def _too_late(
        self, arrival: Arrival, estimate: Estimate, room: Room, now: float, *, waits: bool = True
    ) -> Refusal | None:
        if math.isinf(arrival.deadline):
            return None
        wait = self.wait_s(now) if waits else 0.0
        shortest = estimate.at_least * room.fastest_step_s()
        needed = wait + shortest
        if now + needed <= arrival.deadline:
            return None
        left = max(0.0, arrival.deadline - now)
        retry = self._retry(wait) if shortest < left else None
        return Refusal(
            Reason.DEADLINE_UNREACHABLE,
            f"{left:.1f} s are left and it would take about {needed:.1f} s: allow more time, lower max_tokens or the "
            "thinking budget" + (f", or retry in {retry:.0f} s" if retry else ""),
            retry,
        )

    def _leave_queue(self, ticket: Ticket) -> None:
        self.queued -= 1
        self._queued_tokens = max(0.0, self._queued_tokens - ticket.estimate.tokens) if self.queued else 0.0
        self._accounts.of(ticket.arrival.tenant.name).queued -= 1

    def _retry(self, seconds: float) -> float:
        return min(self.rules.max_retry_s, max(self.rules.min_retry_s, seconds))
