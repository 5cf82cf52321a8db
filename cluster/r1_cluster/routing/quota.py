"""What each tenant has used and reserved, shared with the other routers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from r1_cluster.routing.shares import Escrow, Part, Want, base, gifts
from r1_cluster.routing.tenants import Quota

MINUTE_S = 60.0

# Another router's report counts so long; reports come every second.
FRESH_S = 10.0
# Routers that began within so long of each other began together, and each holds its part of a full minute.
TOGETHER_S = 5.0
# A router keeps what it is likely asked for so long, and gives the rest to whoever lacks.
AHEAD_S = 5.0
# What a request is told to wait where the tokens it lacks are with other routers, on their way within that time.
SHARED_RETRY_S = 1.0


NO_PART = Part()
UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class Usage:
    """One tenant at one router, as it reports it to the others: its parts of both limits, and who waits."""

    tokens: Part = NO_PART
    slots: Part = NO_PART
    queued: int = 0


NOTHING = Usage()


@dataclass(frozen=True, slots=True)
class Report:
    """One router's. ``uptime_s`` tells who was there first. Of tenants left out the last report holds: nothing has
    happened since."""

    router_id: str
    uptime_s: float
    usage: Mapping[str, Usage]


@dataclass(slots=True)
class _Account:
    """``level``: tokens the tenant may still reserve here now; None until a limit is known."""

    level: float | None = None
    at: float = 0.0
    begun_with: float = 0.0
    begun_at: float = 0.0
    running: int = 0
    queued: int = 0
    limits: Quota = UNLIMITED
    tokens: Escrow = field(default_factory=Escrow)
    slots: Escrow = field(default_factory=Escrow)
    largest: float = 0.0  # request lately, in tokens; fading
    asked: float = 0.0  # tokens lately, fading
    asked_at: float = 0.0
    short_since: float | None = None  # of tokens
    full_since: float | None = None  # of slots
    touched_at: float = -math.inf

    def quiet(self, now: float) -> bool:
        """Nothing has happened for so long that all have been told so."""
        return not self.running and not self.queued and now - self.touched_at > MINUTE_S

    def ask(self, tokens: float, now: float) -> None:
        faded = math.exp(-(now - self.asked_at) / AHEAD_S)
        self.asked = self.asked * faded + tokens
        self.largest = max(tokens, self.largest * faded)
        self.asked_at = now

    def want_tokens(self, now: float) -> Want:
        faded = math.exp(-(now - self.asked_at) / AHEAD_S)
        if faded < 0.1 or not self.asked:  # nobody has asked for a while
            return Want()
        waited = 0.0 if self.short_since is None else now - self.short_since
        return Want(self.largest, self.asked * faded, waited)  # a request is wanted whole

    def want_slots(self, now: float) -> Want:
        waiting = self.queued > 0
        waited = 0.0 if self.full_since is None or not waiting else now - self.full_since
        return Want(self.running + waiting, max(0, self.queued - 1), waited)


@dataclass(slots=True)
class _Peer:
    heard_at: float
    usage: dict[str, Usage] = field(default_factory=dict)


class Accounts:
    """By tenant name, over all models. Quotas are given with each call: a reloaded file counts from the next one.

    Of several routers each owns a part of each limit: an equal one at first, then what the others give. ``urgent`` is
    set when the others should hear of it before the next second.
    """

    def __init__(self, router_id: str = "", begun_at: float = 0.0) -> None:
        self.router_id = router_id
        self.urgent = False
        self._begun_at = begun_at
        self._accounts: dict[str, _Account] = {}
        self._peers: dict[str, _Peer] = {}
        self._attached = 1
        self._late = False

    def of(self, tenant: str) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account()
        return account

    def wait_for(self, tenant: str, tokens: float, quota: Quota, now: float) -> float:
        """Seconds until ``tokens`` may be reserved; 0 for now. What exceeds a minute's quota waits for a full one."""
        limit = quota.tokens_per_minute
        if limit is None:
            return 0.0
        account, needed = self._account(tenant, quota, now), min(tokens, limit)
        account.ask(needed, now)
        level = self._level(tenant, limit, now)
        if needed <= level:
            account.short_since = None
            return 0.0
        account.short_since = now if account.short_since is None else account.short_since
        shared = self.routers(now) > 1
        self.urgent |= shared
        missing = needed - max(0.0, level) - self._elsewhere(tenant, now) if shared else needed - level
        return max(SHARED_RETRY_S if shared else 0.0, missing * MINUTE_S / limit)

    def reserve(self, tenant: str, tokens: float, quota: Quota, now: float) -> None:
        """Take ``tokens``; negative gives back."""
        limit = quota.tokens_per_minute
        if limit is not None:
            self._account(tenant, quota, now).level = min(float(limit), self._level(tenant, limit, now) - tokens)

    def may_run(self, tenant: str, quota: Quota, now: float) -> bool:
        """Whether one more of the tenant's requests may run here."""
        limit = quota.max_running
        if limit is None:
            return True
        account, routers = self._account(tenant, quota, now), self.routers(now)
        peers = self._usage(tenant, now)
        running = account.running + sum(peer.slots.owned - peer.slots.free for peer in peers.values())
        if account.running < self._slots(account, limit, now) and running < limit:
            account.full_since = None
            return True
        account.full_since = now if account.full_since is None else account.full_since
        self.urgent |= routers > 1
        return False

    def may_wait(self, tenant: str, quota: Quota, now: float) -> bool:
        """Whether one more may wait: by the others' last reports, so a burst at several routers may pass the limit."""
        if quota.max_queued is None:
            return True
        queued = self.of(tenant).queued + sum(peer.queued for peer in self._usage(tenant, now).values())
        return queued < quota.max_queued

    def routers(self, now: float) -> int:
        """How many share the limits, as far as is known here."""
        return max(self._attached, 1 + len(self._fresh(now)))

    def attached(self, routers: int) -> None:
        """The ranks say how many routers they serve: where reports fail each keeps its equal part."""
        self._attached = max(1, routers)

    def hear(self, report: Report, now: float) -> None:
        """Another router's report: what it gave is ours from now."""
        if report.router_id == self.router_id:
            return
        if report.router_id not in self._peers:
            self._late |= report.uptime_s > now - self._begun_at + TOGETHER_S
        peer = self._peers.setdefault(report.router_id, _Peer(now))
        peer.heard_at = now
        peer.usage.update(report.usage)
        for tenant, usage in report.usage.items():
            account = self.of(tenant)
            if account.level is None and account.limits == UNLIMITED:
                account.limits = Quota(
                    tokens_per_minute=int(usage.tokens.limit) or None, max_running=int(usage.slots.limit) or None
                )
            got = account.tokens.take(report.router_id, usage.tokens.given.get(self.router_id, 0.0))
            if account.limits.tokens_per_minute is not None:
                account.level = self._level(tenant, account.limits.tokens_per_minute, now) + got
            if account.slots.take(report.router_id, usage.slots.given.get(self.router_id, 0.0)) or got:
                account.touched_at = now

    def report(self, now: float) -> Report:
        """Give what others lack, and say what is here."""
        for tenant in self._accounts:
            self._give(tenant, now)
        self.urgent = False
        self._peers = {name: peer for name, peer in self._peers.items() if now - peer.heard_at < MINUTE_S}
        usage = {tenant: self._own(tenant, now) for tenant, account in self._accounts.items() if not account.quiet(now)}
        usage = {tenant: own for tenant, own in usage.items() if own.tokens.limit or own.slots.limit}
        return Report(self.router_id, now - self._begun_at, usage)

    def could_give(self, report: Report, now: float) -> bool:
        """Whether this router could give now what that one lacks."""
        return any(_short(usage) and self._gifts(tenant, now) != ({}, {}) for tenant, usage in report.usage.items())

    def _account(self, tenant: str, quota: Quota, now: float) -> _Account:
        account = self.of(tenant)
        account.limits = quota
        account.touched_at = now
        return account

    def _fresh(self, now: float) -> list[str]:
        return [name for name, peer in self._peers.items() if now - peer.heard_at < FRESH_S]

    def _usage(self, tenant: str, now: float) -> dict[str, Usage]:
        return {name: self._peers[name].usage.get(tenant, NOTHING) for name in self._fresh(now)}

    def _elsewhere(self, tenant: str, now: float) -> float:
        return sum(max(0.0, peer.tokens.owned) for peer in self._usage(tenant, now).values())

    def _level(self, tenant: str, limit: int, now: float) -> float:
        """Refilled by this router's part of the rate, until all of them together hold the limit."""
        account, routers = self.of(tenant), self.routers(now)
        part = limit / routers
        first = 0.0 if self._late and now - self._begun_at < MINUTE_S else part
        if account.level is None:
            account.level, account.at = first, now
            account.begun_with, account.begun_at = first, now
        elif first < account.begun_with and now - account.begun_at < TOGETHER_S:
            # It took a moment to learn of the others: what was theirs is given up.
            account.level -= account.begun_with - first
            account.begun_with = first
        known = [peer.tokens for peer in self._usage(tenant, now).values()]
        others = sum(peer.owned if peer.limit else part for peer in known) + (routers - 1 - len(known)) * part
        room = max(0.0, limit - account.level - others)
        account.level = min(float(limit), account.level + min(room, (now - account.at) * part / MINUTE_S))
        account.at = now
        return account.level

    def _slots(self, account: _Account, limit: int, now: float) -> int:
        others = self._fresh(now)
        own = base(limit, [self.router_id, *others], self.router_id, self.routers(now))
        return max(0, own + int(account.slots.net(others)))

    def _own(self, tenant: str, now: float) -> Usage:
        account = self.of(tenant)
        tokens, slots = NO_PART, NO_PART
        per_minute, running = account.limits.tokens_per_minute, account.limits.max_running
        if per_minute is not None:
            level = self._level(tenant, per_minute, now)
            want = account.want_tokens(now)
            tokens = Part(per_minute, level, max(0.0, level), want, *self._moved(account.tokens, now))
        if running is not None:
            owned = self._slots(account, running, now)
            free, want = max(0, owned - account.running), account.want_slots(now)
            slots = Part(running, max(owned, account.running), free, want, *self._moved(account.slots, now))
        return Usage(tokens, slots, account.queued)

    def _moved(self, escrow: Escrow, now: float) -> tuple[dict[str, float], dict[str, float]]:
        """Given to and taken from the routers that are still there."""
        names = self._fresh(now)
        given, taken = escrow.given, escrow.taken
        return {n: given[n] for n in names if n in given}, {n: taken[n] for n in names if n in taken}

    def _gifts(self, tenant: str, now: float) -> tuple[dict[str, float], dict[str, float]]:
        """Of tokens and of slots."""
        peers = self._usage(tenant, now)
        if not any(map(_short, peers.values())):
            return {}, {}
        account, own = self.of(tenant), self._own(tenant, now)
        tokens, slots = {self.router_id: own.tokens}, {self.router_id: own.slots}
        for name, peer in peers.items():
            tokens[name] = _received(peer.tokens, account.tokens.under_way(name, peer.tokens, self.router_id))
            slots[name] = _received(peer.slots, account.slots.under_way(name, peer.slots, self.router_id))
        total = sum(part.owned for part in tokens.values())
        return gifts(self.router_id, tokens, total), gifts(self.router_id, slots, own.slots.limit, whole=True)

    def _give(self, tenant: str, now: float) -> None:
        account, (tokens, slots) = self.of(tenant), self._gifts(tenant, now)
        for name, amount in tokens.items():
            account.tokens.give(name, amount)
            account.level = (account.level or 0.0) - amount
        for name, amount in slots.items():
            account.slots.give(name, amount)
        if tokens or slots:
            account.touched_at = now


def _short(usage: Usage) -> bool:
    return any(part.want.first + part.want.more > part.owned for part in (usage.tokens, usage.slots))


def _received(part: Part, amount: float) -> Part:
    """A part as it will be once what is under way has come."""
    return Part(part.limit, part.owned + amount, part.free, part.want, part.given, part.taken)
