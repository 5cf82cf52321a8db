"""Everything of this package in one place, for one model: what the live router and the simulator drive.

``offer`` a request; ``start_next`` while it returns something, whenever room may have come; ``end`` each. Times are the
caller's clock, fleets the caller's snapshots; nothing here waits or does I/O.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from r1_cluster.routing.admission import Admission, Arrival, Estimate, Refusal, Room, Rules, State, Ticket
from r1_cluster.routing.budget import BudgetRules, resolve
from r1_cluster.routing.fleet import Demand, RankView
from r1_cluster.routing.kv import Following, KvLedger, Shape, forecast_new
from r1_cluster.routing.lengths import BudgetClass, LengthForecast, LengthKey, Outcome
from r1_cluster.routing.policy import Choice, Policy
from r1_cluster.routing.prefix import PrefixIndex
from r1_cluster.routing.quota import Accounts

SHORTLIST = 32  # ranks looked at closely for one pick


@dataclass(frozen=True, slots=True)
class Start:
    """A request's turn has come. Its i-th choice goes to ``ranks[i]``, ``choices[i]`` says why, and ``following[i].of``
    is to be set to what tells its progress."""

    ticket: Ticket
    ranks: tuple[RankView, ...]
    choices: tuple[Choice, ...]
    following: tuple[Following, ...]


@dataclass(frozen=True, slots=True)
class Late:
    """A request waited until it could no longer be done in time."""

    ticket: Ticket
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Decision:
    """For the debug page: what became of a request and why."""

    at: float
    tenant: str
    outcome: str
    budget: str
    explanation: str


class Dispatcher:
    """``quantile``: reservations cover this share of requests; what they do not use is returned."""

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
    ) -> None:
        self.policy = policy
        self.lengths = lengths or LengthForecast()
        self.prefix = prefix or PrefixIndex()
        self.ledger = KvLedger(self.lengths, refresh_s)
        self.admission = Admission(rules or Rules(), accounts or Accounts())
        self.recent: deque[Decision] = deque(maxlen=256)
        self._budgets = budgets or BudgetRules()
        self._quantile = quantile

    def offer(self, arrival: Arrival, ranks: Sequence[RankView], now: float) -> Ticket | Refusal:
        """Let a request in to wait for its turn, or refuse it."""
        room = self.room(ranks)
        estimate = self.estimate(arrival, self.admission.saturation(room, now))
        got = self.admission.offer(arrival, estimate, room, now)
        if isinstance(got, Refusal):
            self._note(arrival, estimate, got.reason, got.message, now)
        return got

    def start_next(self, ranks: Sequence[RankView], now: float) -> Start | Late | None:
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
            estimate = self.estimate(ticket.arrival, self.admission.saturation(room, now, besides=ticket))
            choice = self._choose(ticket.arrival, estimate, ranks, now)
            if choice.rank is not None:
                return self._start(ticket, estimate, choice, choice.rank, ranks, now)
        return None

    def again(
        self, ticket: Ticket, index: int, ranks: Sequence[RankView], now: float, *, resumed_tokens: int = 0
    ) -> tuple[Choice, Following]:
        """Another rank for a choice of a running request, after so many tokens; its old place is given up.

        It has begun and goes before all that wait: only a full or a draining rank does not take it.
        """
        self.ledger.remove(ticket.placements[index])
        arrival = dataclasses.replace(ticket.arrival, prompt_tokens=ticket.arrival.prompt_tokens + resumed_tokens)
        choice = self._choose(arrival, ticket.estimate, ranks, now, waits=False)
        following = Following(ticket.arrival.opens_thought)
        if choice.rank is not None:
            ticket.placements[index] = self.ledger.place(choice.rank.worker_id, ticket.estimate.shape, following, now)
            self.prefix.sent(choice.rank.worker_id, ticket.arrival.chain)
            self._note(ticket.arrival, ticket.estimate, "moved", choice.explain(), now)
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
            self.ledger.remove(number)
        self.admission.end(ticket, used, now)

    def left(self, worker_id: str) -> None:
        """A rank is gone."""
        self.ledger.forget(worker_id)
        self.prefix.forget(worker_id)

    def see(self, ranks: Sequence[RankView], now: float, cached: Iterable[str] = ()) -> list[RankView]:
        """The ranks with what is known here of each: what was just placed, and the forecast.

        Of many only the least loaded and those that have the prompt ``cached``: the cost of a pick does not grow with
        the fleet, and between the 32 emptiest ranks there is choice enough.
        """
        ledger = self.ledger
        loads = [max(rank.load, ledger.count(rank.worker_id)) for rank in ranks]
        chosen: Iterable[int] = range(len(ranks))
        if len(ranks) > SHORTLIST:
            kept = set(cached)
            emptiest = heapq.nsmallest(
                SHORTLIST,
                (i for i, rank in enumerate(ranks) if not rank.draining),
                key=lambda i: (loads[i] / ranks[i].max_num_seqs, ranks[i].last_pick),
            )
            chosen = sorted({*emptiest, *(i for i, rank in enumerate(ranks) if rank.worker_id in kept)})
        return [
            dataclasses.replace(ranks[i], in_flight=loads[i], kv_ahead=ledger.ahead(ranks[i].worker_id, now))
            for i in chosen
        ]

    def room(self, ranks: Sequence[RankView]) -> Room:
        total = sum(rank.kv_tokens for rank in ranks)
        ahead = sum(self.ledger.peak(rank.worker_id, rank.kv_usage * rank.kv_tokens) for rank in ranks)
        return Room(
            kv_tokens_of_largest_rank=max((rank.kv_tokens for rank in ranks), default=0),
            pressure=ahead / total if total else 0.0,
            step_time_s=min((rank.step_time_s for rank in ranks), default=0.0),
        )

    def estimate(self, arrival: Arrival, saturation: float) -> Estimate:
        """What a request would get and use at this saturation."""
        budget = resolve(
            arrival.asked,
            arrival.tenant.budget,
            self._budgets,
            max_tokens=arrival.max_tokens,
            saturation=saturation,
        )
        key = LengthKey(arrival.tenant.name, arrival.model, BudgetClass.of(budget.applied))
        shape = Shape(key, arrival.prompt_tokens, arrival.max_tokens, budget.applied, arrival.opens_thought)
        curves = self.lengths.curves(key)
        likely = curves.tokens(self._quantile, budget=budget.applied, max_tokens=arrival.max_tokens)
        at_least = curves.tokens(0.1, budget=budget.applied, max_tokens=arrival.max_tokens)
        return Estimate(budget, shape, arrival.prompt_tokens + arrival.n * likely, at_least)

    def _choose(
        self, arrival: Arrival, estimate: Estimate, ranks: Sequence[RankView], now: float, *, waits: bool = True
    ) -> Choice:
        cached = self.prefix.cached(arrival.chain, [rank.worker_id for rank in ranks])
        kv = forecast_new(self.lengths.curves(estimate.shape.key), estimate.shape)
        demand = Demand(arrival.prompt_tokens, arrival.max_tokens, cached, kv)
        return self.policy.choose(demand, self.see(ranks, now, cached), waits=waits)

    def _start(
        self,
        ticket: Ticket,
        estimate: Estimate,
        first: Choice,
        rank: RankView,
        ranks: Sequence[RankView],
        now: float,
    ) -> Start:
        self.admission.start(ticket, estimate, now)
        picked, choices, following = [], [], []
        for index in range(ticket.arrival.n):
            # Let in is let in whole: later choices do not wait, and where all is full lie beside the one before.
            choice = self._choose(ticket.arrival, estimate, ranks, now, waits=False) if index else first
            rank = choice.rank or rank
            picked.append(rank)
            choices.append(choice)
            follow = Following(ticket.arrival.opens_thought)
            ticket.placements.append(self.ledger.place(rank.worker_id, estimate.shape, follow, now))
            self.prefix.sent(rank.worker_id, ticket.arrival.chain)
            following.append(follow)
        self._note(ticket.arrival, estimate, "started", "; ".join(choice.explain() for choice in choices), now)
        return Start(ticket, tuple(picked), tuple(choices), tuple(following))

    def _note(self, arrival: Arrival, estimate: Estimate, outcome: str, explanation: str, now: float) -> None:
        self.recent.append(Decision(now, arrival.tenant.name, outcome, estimate.budget.explain(), explanation))
