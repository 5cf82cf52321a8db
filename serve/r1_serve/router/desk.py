"""The router's front desk: who is let in, when it starts and where. ``r1_cluster.routing`` decides; here are the event
loop, the attached ranks and the calls.

A call that has to wait is open already: its client may hang up, its deadline passes, keep-alives are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r1_cluster.routing import Policy, RankView
from r1_cluster.routing.admission import Admission, Arrival, Reason, Refusal, Rules, Ticket
from r1_cluster.routing.budget import Budget
from r1_cluster.routing.dispatcher import Decision, Dispatcher, Late
from r1_cluster.routing.lengths import Outcome
from r1_cluster.routing.quota import Accounts

from r1_serve.errors import (
    DeadlineUnreachable,
    FleetSaturated,
    NoWorkers,
    R1Error,
    TenantQuota,
    TooLongForPlan,
)
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.call import Call
from r1_serve.router.choice import Thought
from r1_serve.router.models import Catalog, ServedModel
from r1_serve.router.ranks import Rank, Ranks

# Between looks for room while calls wait. One that ends makes room at once; growth is forecast anew each second.
LOOK_S = 0.1

_ERRORS: dict[Reason, type[R1Error]] = {
    Reason.TENANT_QUOTA: TenantQuota,
    Reason.FLEET_SATURATED: FleetSaturated,
    Reason.DEADLINE_UNREACHABLE: DeadlineUnreachable,
    Reason.TOO_LONG_FOR_PLAN: TooLongForPlan,
}
_CLOSED = (Thought.COMPLETE, Thought.EMPTY, Thought.NONE)

Begin = Callable[[Sequence[Rank], Budget], None]


@dataclass(slots=True)
class _Held:
    ticket: Ticket
    call: Call
    begin: Begin


@dataclass(frozen=True, slots=True)
class Load:
    """``wait_s``: how long what is ``queued`` takes to start. ``pressure``: forecast KV over all KV,
    ``placed_pressure`` this router's part of it. ``saturation`` as of Admission."""

    queued: int
    wait_s: float
    pressure: float
    placed_pressure: float
    saturation: float


class Desk:
    """All models. ``begin(ranks, budget)`` of an admitted call is called once, at its turn: with a rank for each choice
    and the thinking budget as resolved at that moment."""

    def __init__(
        self, catalog: Catalog, ranks: Ranks, policy: Policy, clock: Callable[[], float], accounts: Accounts
    ) -> None:
        self._ranks = ranks
        self._clock = clock
        self._dispatchers = {
            name: Dispatcher(
                policy,
                accounts=accounts,
                rules=Rules(max_queued=model.max_queued_requests, max_wait_s=model.max_queue_seconds),
                budgets=model.budget_rules,
            )
            for name, model in catalog.models.items()
        }
        self._held: dict[Ticket, _Held] = {}
        self._tickets: dict[Call, Ticket] = {}
        self._due: set[str] = set()  # models with calls ended since the last start
        self._timer: asyncio.TimerHandle | None = None
        self.begun_first: Callable[[], None] = lambda: None  # before any new call starts: places who lost its rank

    @property
    def admissions(self) -> dict[str, Admission]:
        """By model."""
        return {name: dispatcher.admission for name, dispatcher in self._dispatchers.items()}

    def queued(self, model: str) -> int:
        return self._dispatchers[model].admission.queued

    def load(self, model: str) -> Load:
        """What waits for ``model`` and how much of its ranks is spoken for."""
        dispatcher, now = self._dispatchers[model], self._clock()
        views, admission = self._views(model), dispatcher.admission
        room, all_kv = dispatcher.room(views), sum(view.kv_tokens for view in views)
        placed = sum(dispatcher.ledger.peak(view.worker_id) for view in views) / all_kv if all_kv else 0.0
        return Load(admission.queued, admission.wait_s(now), room.pressure, placed, admission.saturation(room, now))

    def recent(self, model: str) -> list[Decision]:
        """The last decisions, newest first, and why."""
        return list(reversed(self._dispatchers[model].recent))

    def chain(self, model: ServedModel, prompt: Sequence[int], salt: str) -> tuple[bytes, ...]:
        return self._dispatchers[model.name].prefix.chain(prompt, salt)

    def admit(self, call: Call, arrival: Arrival, begin: Begin) -> None:
        """Let ``call`` in: it begins at once or at its turn. Raises R1Error where it is refused."""
        name = arrival.model
        dispatcher = self._dispatchers[name]
        got = dispatcher.offer(arrival, self._views(name), self._clock())
        if isinstance(got, Refusal):
            raise _error(got)
        self._tickets[call] = got
        self._held[got] = _Held(got, call, begin)
        self._start_all(name)
        self._again()

    def ended(self, call: Call) -> None:
        """A call is over, in whichever way: what it reserved and did not use is free."""
        ticket = self._tickets.pop(call, None)
        if ticket is None:
            return
        self._held.pop(ticket, None)
        limit = ticket.arrival.max_tokens
        outcomes = [
            Outcome(
                thinking_tokens=generation.choice.reasoning_tokens,
                answer_tokens=generation.choice.answer_tokens,
                closed=generation.choice.thought in _CLOSED,
                finished=call.error is None and generation.choice.completion_tokens < limit,
            )
            for generation in call.generations
        ]
        name = ticket.arrival.model
        self._dispatchers[name].end(ticket, outcomes, self._clock())
        if self.queued(name) and name not in self._due:
            # Once the frame that ended it is read to its end: before that its rank still counts it.
            self._due.add(name)
            asyncio.get_running_loop().call_soon(self._start_due, name)

    def move(self, call: Call, index: int, avoid: Rank | None = None) -> Rank:
        """Another rank for a choice that has begun and whose rank is gone or to be avoided. It goes before all that
        wait. Raises NoWorkers, FleetSaturated where none takes it now."""
        ticket, generation = self._tickets[call], call.generations[index]
        name = ticket.arrival.model
        ranks = {rank.hello.worker_id: rank for rank in self._ranks.usable(name) if rank is not avoid}
        views = [rank.view() for rank in ranks.values()]
        resumed = generation.choice.completion_tokens
        choice, following = self._dispatchers[name].again(ticket, index, views, self._clock(), resumed_tokens=resumed)
        if choice.rank is None:
            if not views:
                raise NoWorkers(f"no worker serves {name} now", retry_after=1.0)
            raise FleetSaturated(f"every worker of {name} is full", retry_after=1.0)
        following.of = generation.choice
        call.choice = choice
        rank = ranks[choice.rank.worker_id]
        self._ranks.picked(rank)
        return rank

    def look_again(self) -> None:
        """Something may have made room for those who wait, if any do."""
        if self._held:
            self.look()

    def look(self) -> None:
        """Start what has room now: ranks came or went, or time has passed."""
        for name in self._dispatchers:
            self._start_all(name)
        self._again()

    def left(self, rank: Rank) -> None:
        """A rank is gone."""
        self._dispatchers[rank.hello.model].left(rank.hello.worker_id)

    def kv_changed(self, rank: Rank, change: pb.KvChange) -> None:
        """A rank's engine says what its prefix cache holds: from then on that alone counts."""
        prefix, worker_id = self._dispatchers[rank.hello.model].prefix, rank.hello.worker_id
        if change.cleared:
            prefix.cleared(worker_id)
        prefix.removed(worker_id, [block.to_bytes(8, "big") for block in change.removed])
        prefix.stored(worker_id, [block.to_bytes(8, "big") for block in change.stored])

    def _start_due(self, name: str) -> None:
        self._due.discard(name)
        self._start_all(name)

    def _start_all(self, name: str) -> None:
        self.begun_first()
        while self.queued(name) and self._start_one(name):
            pass

    def _start_one(self, name: str) -> bool:
        """Start or refuse the call whose turn it is; return whether there was one."""
        got = self._dispatchers[name].start_next(self._views(name), self._clock())
        if got is None:
            return False
        held = self._held.pop(got.ticket)
        if isinstance(got, Late):
            held.call.fail(_error(got.refusal))
            return True
        ranks = [self._ranks[view.worker_id] for view in got.ranks]
        for rank in ranks:
            self._ranks.picked(rank)
        held.call.choice = got.choices[0]
        held.begin(ranks, got.ticket.estimate.budget)
        for following, generation in zip(got.following, held.call.generations, strict=True):
            following.of = generation.choice
        return True

    def _views(self, name: str) -> list[RankView]:
        return [rank.view() for rank in self._ranks.usable(name)]

    def _again(self) -> None:
        """One timer while anyone waits, none otherwise."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self.look)


def _error(refusal: Refusal) -> R1Error:
    return _ERRORS[refusal.reason](refusal.message, retry_after=refusal.retry_after)
