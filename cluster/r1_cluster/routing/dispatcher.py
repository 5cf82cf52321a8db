"""Everything of this package in one place, for one model: what the live router and the simulator drive.

``offer`` a request; ``start_next`` while it returns something, whenever room may have come; ``end`` each. Times are the
caller's clock, fleets the caller's snapshots; nothing here waits or does I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from r1_cluster.routing.admission import Admission, Arrival, Estimate, Refusal, Room, Rules, State, Ticket
from r1_cluster.routing.budget import Asked, Budget, BudgetRules, resolve
from r1_cluster.routing.fleet import Demand, RankView
from r1_cluster.routing.kv import AHEAD, Following, KvForecast, Shape, forecast_new
from r1_cluster.routing.ledger import KvLedger
from r1_cluster.routing.lengths import BudgetClass, Curves, LengthForecast, LengthKey, Outcome
from r1_cluster.routing.policy import Choice, Policy
from r1_cluster.routing.prefix import PrefixIndex
from r1_cluster.routing.quota import Accounts
from r1_cluster.routing.table import RankTable
from r1_cluster.routing.tenants import BudgetPolicy

Ranks = Sequence[RankView] | RankTable

# Of a fleet of more than WHOLE ranks a pick looks only at the SHORTLIST emptiest and at as many that have most of the
# prompt cached: it costs the same in any fleet, and between the emptiest there is choice enough.
WHOLE = 16
SHORTLIST = 8


class Start(NamedTuple):
    """A request's turn has come. Its i-th choice goes to ``ranks[i]``, ``choices[i]`` says why, and ``following[i].of``
    is to be set to what tells its progress."""

    ticket: Ticket
    ranks: tuple[RankView, ...]
    choices: tuple[Choice, ...]
    following: tuple[Following, ...]


class Late(NamedTuple):
    """A request waited until it could no longer be done in time."""

    ticket: Ticket
    refusal: Refusal


class Decision(NamedTuple):
    """For the debug page: what became of a request and why, put into words when it is looked at."""

    at: float
    tenant: str
    outcome: str
    resolved: Budget
    why: str | tuple[Choice, ...]

    @property
    def budget(self) -> str:
        return self.resolved.explain()

    @property
    def explanation(self) -> str:
        return self.why if isinstance(self.why, str) else "; ".join(choice.explain() for choice in self.why)

    def as_dict(self) -> dict[str, str | float]:
        names = ("at", "tenant", "outcome", "budget", "explanation")
        return {name: getattr(self, name) for name in names}


class Dispatcher:
    """``quantile``: reservations cover this share of requests; what they do not use is returned. ``remembered``: how
    many decisions ``recent`` holds for who asks why.

    Where ``ranks`` is asked for, give a snapshot of the fleet, or ``table``, kept up to date by what changed.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        lengths: LengthForecast | None = None,
        prefix: PrefixIndex | None = None,
        accounts: Accounts | None = None,
        rules: Rules | None = None,
        budgets: BudgetRules | None = None,
        quantile: float = 0.75,
        refresh_s: float = 1.0,
        remembered: int = 256,
    ) -> None:
        self.policy = policy
        self.lengths = lengths or LengthForecast()
        self.prefix = prefix or PrefixIndex()
        self.ledger = KvLedger(self.lengths, refresh_s)
        self.table = RankTable(self.ledger)
        self.admission = Admission(rules or Rules(), accounts or Accounts())
        self.recent: deque[Decision] = deque(maxlen=remembered)
        self._budgets = budgets or BudgetRules()
        self._quantile = quantile
        self._last: tuple[Arrival, float, Estimate, Curves] | None = None
        self._resolved: dict[tuple[Asked, str, str, int], tuple[BudgetPolicy, Budget, LengthKey]] = {}

    def offer(self, arrival: Arrival, ranks: Ranks, now: float) -> Ticket | Refusal:
        """Let a request in to wait for its turn, or refuse it."""
        room = self.room(ranks)
        estimate = self.estimate(arrival, self._saturation(room, now))
        got = self.admission.offer(arrival, estimate, room, now)
        if isinstance(got, Refusal):
            self._note(arrival, estimate, got.reason, got.message, now)
        return got

    def start_next(self, ranks: Ranks, now: float) -> Start | Late | None:
        """The request whose turn it is and that a rank takes now, or one whose time has run out; None: none for now."""
        if not self.admission.queued:
            return None
        room = self.room(ranks)
        for ticket in self.admission.turns(now):
            refusal = self.admission.overdue(ticket, room, now)
            if refusal is not None:
                self.end(ticket, (), now)
                self._note(ticket.arrival, ticket.estimate, refusal.reason, refusal.message, now)
                return Late(ticket, refusal)
            estimate = self.estimate(ticket.arrival, self._saturation(room, now, besides=ticket))
            choice, kv = self._choose(ticket.arrival, estimate, now)
            if choice.rank is None:
                if self.admission.stops(ticket, now):
                    return None
            elif not self.admission.gives_way(ticket, now):
                return self._start(ticket, estimate, choice, choice.rank, kv, now)
        return None

    def again(
        self, ticket: Ticket, index: int, ranks: Ranks, now: float, *, resumed_tokens: int = 0
    ) -> tuple[Choice, Following]:
        """Another rank for a choice of a running request, after so many tokens; its old place is given up.

        It has begun and goes before all that wait: only a full or a draining rank does not take it.
        """
        self._sync(ranks)
        self._remove(ticket.placements[index])
        arrival = ticket.arrival._replace(prompt_tokens=ticket.arrival.prompt_tokens + resumed_tokens)
        choice, _ = self._choose(arrival, ticket.estimate, now, waits=False)
        following = Following(ticket.arrival.opens_thought)
        if choice.rank is not None:
            ticket.placements[index] = self._put(choice.rank.worker_id, ticket, following, None, now)
            self._note(ticket.arrival, ticket.estimate, "moved", (choice,), now)
        return choice, following

    def end(self, ticket: Ticket, outcomes: Iterable[Outcome], now: float) -> None:
        """A request is over, in whichever way, with what each of its choices came to. Harmless the second time."""
        if ticket.state is State.ENDED:
            return
        used = 0
        for outcome in outcomes:
            used += outcome.thinking_tokens + outcome.answer_tokens
            self.lengths.observe(ticket.estimate.shape.key, outcome)
        if ticket.state is State.RUNNING:
            used += ticket.arrival.prompt_tokens
        for number in ticket.placements:
            self._remove(number)
        self.admission.end(ticket, used, now)

    def left(self, worker_id: str) -> None:
        """A rank is gone."""
        self.table.remove(worker_id)
        self.ledger.forget(worker_id)
        self.prefix.forget(worker_id)

    def room(self, ranks: Ranks) -> Room:
        """The fleet as admission sees it."""
        return self._sync(ranks)

    def estimate(self, arrival: Arrival, saturation: float) -> Estimate:
        """What a request would get and use at this saturation."""
        last = self._last
        if last and last[0] is arrival and last[1] == saturation:
            # Asked again a moment later for a request that need not wait.
            known = last[2]
            if self.lengths.curves(known.shape.key) is last[3]:
                return known
        budget, key = self._resolve(arrival, saturation)
        applied, max_tokens = budget.applied, arrival.max_tokens
        shape = Shape(key, arrival.prompt_tokens, max_tokens, applied, arrival.opens_thought)
        curves = self.lengths.curves(key)
        likely = curves.tokens(self._quantile, budget=applied, max_tokens=max_tokens)
        at_least = curves.tokens(0.1, budget=applied, max_tokens=max_tokens)
        estimate = Estimate(budget, shape, arrival.prompt_tokens + arrival.n * likely, at_least)
        self._last = (arrival, saturation, estimate, curves)
        return estimate

    def _saturation(self, room: Room, now: float, besides: Ticket | None = None) -> float:
        """As budgets see it: below where they begin to shrink nothing depends on it."""
        return self.admission.saturation(room, now, besides, at_least=self._budgets.tighten_from)

    def _resolve(self, arrival: Arrival, saturation: float) -> tuple[Budget, LengthKey]:
        """Its budget, and what its length is learnt by. Remembered for a fleet that is not full."""
        tenant, full = arrival.tenant, saturation > self._budgets.tighten_from
        asked = (arrival.asked, tenant.name, arrival.model, arrival.max_tokens)
        known = None if full else self._resolved.get(asked)
        if known is not None and known[0] is tenant.budget:
            return known[1], known[2]
        budget = resolve(
            arrival.asked, tenant.budget, self._budgets, max_tokens=arrival.max_tokens, saturation=saturation
        )
        key = LengthKey(tenant.name, arrival.model, BudgetClass.of(budget.applied))
        if not full:
            if len(self._resolved) >= 4096:
                self._resolved.clear()
            self._resolved[asked] = (tenant.budget, budget, key)
        return budget, key

    def _sync(self, ranks: Ranks) -> RankTable:
        if not isinstance(ranks, RankTable):
            self.table.sync(ranks)
        return self.table

    def _choose(
        self, arrival: Arrival, estimate: Estimate, now: float, *, waits: bool = True
    ) -> tuple[Choice, KvForecast]:
        """Where a choice goes, and its forecast."""
        table, ledger, chain = self.table, self.ledger, arrival.chain
        if len(table) <= WHOLE:
            rows = table.every()
        else:
            rows = table.shortlist(SHORTLIST, self.prefix.longest(chain, SHORTLIST) if chain else ())
        for row in ledger.refresh(rows, now):
            table.changed(row)
        cached = self.prefix.cached(chain, table.ids(rows)) if chain else {}
        kv = forecast_new(self.lengths.curves(estimate.shape.key), estimate.shape, ledger.block_tokens)
        likely = (estimate.tokens - estimate.shape.prompt_tokens) / arrival.n
        others = self.lengths.of_model(arrival.model).of_running(AHEAD) if table.others else None
        demand = Demand(arrival.prompt_tokens, arrival.max_tokens, cached, kv, likely, others)
        return self.policy.pick(table.fleet(rows, demand), waits=waits), kv

    def _start(
        self, ticket: Ticket, estimate: Estimate, first: Choice, rank: RankView, kv: KvForecast, now: float
    ) -> Start:
        self.admission.start(ticket, estimate, now)
        picked, choices, following = [], [], []
        for index in range(ticket.arrival.n):
            # Let in is let in whole: later choices do not wait, and where all is full lie beside the one before.
            choice = self._choose(ticket.arrival, estimate, now, waits=False)[0] if index else first
            rank = choice.rank or rank
            picked.append(rank)
            choices.append(choice)
            follow = Following(ticket.arrival.opens_thought)
            ticket.placements.append(self._put(rank.worker_id, ticket, follow, kv, now))
            following.append(follow)
        self._note(ticket.arrival, estimate, "started", tuple(choices), now)
        return Start(ticket, tuple(picked), tuple(choices), tuple(following))

    def _put(self, worker_id: str, ticket: Ticket, follow: Following, kv: KvForecast | None, now: float) -> int:
        number = self.ledger.place(worker_id, ticket.estimate.shape, follow, now, kv)
        self.table.changed(self.ledger.row(worker_id))
        self.prefix.sent(worker_id, ticket.arrival.chain)
        return number

    def _remove(self, number: int) -> None:
        row = self.ledger.remove(number)
        if row is not None:
            self.table.changed(row)

    def _note(
        self, arrival: Arrival, estimate: Estimate, outcome: str, why: str | tuple[Choice, ...], now: float
    ) -> None:
        if self.recent.maxlen:
            self.recent.append(Decision(now, arrival.tenant.name, outcome, estimate.budget, why))
