"""Admission: who is let in, whose turn it is, who is refused by which name and until when."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
from r1_cluster.routing.admission import Admission, Arrival, Estimate, Reason, Refusal, Rules, State, Ticket
from r1_cluster.routing.budget import Budget, Step
from r1_cluster.routing.kv import Shape
from r1_cluster.routing.lengths import LengthKey
from r1_cluster.routing.quota import Accounts
from r1_cluster.routing.tenants import Quota, Tenant


@dataclass(frozen=True)
class Fleet:
    """A Room as a value."""

    largest: int = 0
    pressure: float = 0.0
    step_s: float = 0.0

    def fastest_step_s(self) -> float:
        return self.step_s


ROOM = Fleet(largest=100_000, pressure=0.5, step_s=0.05)
BUDGET = Budget(None, 4000, (Step("default", 4000),))
SHAPE = Shape(LengthKey("a", "r1"), 100, 8000, 4000)


def tenant(name: str = "a", **changes: Any) -> Tenant:
    return Tenant(name=name, **changes)


def arrival(of: Tenant | None = None, **changes: Any) -> Arrival:
    return Arrival(of or tenant(), "r1", prompt_tokens=100, max_tokens=8000)._replace(**changes)


def estimate(tokens: int = 1000, at_least: int = 100) -> Estimate:
    return Estimate(BUDGET, SHAPE, tokens, at_least)


def admission(**rules: Any) -> Admission:
    return Admission(Rules(**rules), Accounts())


def let_in(gate: Admission, asked: Arrival, tokens: int = 1000, now: float = 0.0) -> Ticket:
    got = gate.offer(asked, estimate(tokens), ROOM, now)
    assert isinstance(got, Ticket), got
    return got


def refused(gate: Admission, asked: Arrival, now: float = 0.0, room: Fleet = ROOM, **estimated: int) -> Refusal:
    got = gate.offer(asked, estimate(**estimated), room, now)
    assert isinstance(got, Refusal)
    return got


def first(gate: Admission, now: float = 0.0) -> Ticket:
    return next(gate.turns(now))


def test_a_request_waits_runs_and_ends() -> None:
    gate = admission()
    ticket = let_in(gate, arrival())
    assert (gate.queued, ticket.state) == (1, State.QUEUED)
    assert first(gate) is ticket
    gate.start(ticket, estimate(1500), now=1.0)
    assert (gate.queued, ticket.state, ticket.started_at) == (0, State.RUNNING, 1.0)
    assert list(gate.turns(0.0)) == []
    gate.end(ticket, 700, now=9.0)
    gate.end(ticket, 700, now=9.0)
    assert ticket.state is State.ENDED


def test_a_request_that_gives_up_waiting_leaves_nothing_behind() -> None:
    quota = Quota(tokens_per_minute=1000, max_queued=1)
    gate = admission()
    ticket = let_in(gate, arrival(tenant(quota=quota)))
    gate.end(ticket, 0, now=0.0)
    assert gate.queued == 0
    assert list(gate.turns(0.0)) == []
    let_in(gate, arrival(tenant(quota=quota)))


def test_reservations_not_used_are_returned_to_the_tenants_quota() -> None:
    limited = arrival(tenant(quota=Quota(tokens_per_minute=2000)))
    gate = admission()
    ticket = let_in(gate, limited, 1900)
    refusal = refused(gate, limited, tokens=1000)
    assert refusal.reason is Reason.TENANT_QUOTA
    assert refusal.retry_after == pytest.approx(27)
    assert refusal.message == (
        "tenant a has used its 2000 tokens a minute: retry in 27 s, or lower max_tokens or the thinking budget"
    )
    gate.start(ticket, estimate(1900), now=0.0)
    gate.end(ticket, 500, now=0.0)
    let_in(gate, limited, 1500)


def test_a_tenant_at_its_limit_of_running_ones_waits_and_holds_back_no_other() -> None:
    gate = admission()
    small = tenant("small", quota=Quota(max_running=1))
    one, two = let_in(gate, arrival(small)), let_in(gate, arrival(small))
    other = let_in(gate, arrival(tenant("other")))
    gate.start(one, estimate(), now=0.0)
    assert list(gate.turns(0.0)) == [other]
    gate.end(one, 100, now=0.0)
    assert two in list(gate.turns(0.0))


def test_a_tenants_own_queue_has_a_limit() -> None:
    gate = admission()
    small = tenant("small", quota=Quota(max_queued=2))
    let_in(gate, arrival(small))
    let_in(gate, arrival(small))
    refusal = refused(gate, arrival(small))
    assert refusal.reason is Reason.TENANT_QUOTA
    assert refusal.message == "tenant small has 2 requests waiting, its limit: retry in 1 s"
    let_in(gate, arrival(tenant("other")))


def drained(gate: Admission, tokens_per_s: int, seconds: int = 240) -> float:
    """Let so many tokens a second end, for so long; returns the time after."""
    for second in range(seconds):
        ticket = let_in(gate, arrival(tenant("before")), now=float(second))
        gate.start(ticket, estimate(), now=float(second))
        gate.end(ticket, tokens_per_s, now=float(second))
    return float(seconds)


def test_a_full_queue_refuses_until_half_of_it_has_drained() -> None:
    gate = admission(max_queued=4)
    now = drained(gate, 100)
    for _ in range(4):
        let_in(gate, arrival(), now=now)
    refusal = refused(gate, arrival(), now=now)
    assert refusal.reason is Reason.FLEET_SATURATED
    assert refusal.retry_after == pytest.approx(4 * 1000 / 100 / 2, rel=0.05)
    assert refusal.message == "4 requests wait for r1, as many as may: retry in 20 s"


def test_a_queue_that_would_take_too_long_refuses_too() -> None:
    gate = admission(max_wait_s=30.0)
    now = drained(gate, 100)
    for _ in range(3):
        let_in(gate, arrival(), now=now)
    assert refused(gate, arrival(), now=now).reason is Reason.FLEET_SATURATED


def test_a_retry_time_lies_within_bounds_even_before_anything_has_drained() -> None:
    gate = admission(max_queued=1)
    let_in(gate, arrival())
    assert refused(gate, arrival()).retry_after == 1.0
    slow = admission(max_queued=1, max_retry_s=60.0)
    now = drained(slow, 1)
    let_in(slow, arrival(), now=now)
    assert refused(slow, arrival(), now=now).retry_after == 60.0


def test_what_no_rank_can_hold_is_refused_for_good() -> None:
    refusal = refused(admission(), arrival(max_tokens=99_901))
    assert refusal.reason is Reason.TOO_LONG_FOR_PLAN
    assert refusal.retry_after is None
    assert "exceed the 100000 that a rank's cache holds" in refusal.message
    let_in(admission(), arrival(max_tokens=99_900))
    assert isinstance(admission().offer(arrival(max_tokens=1 << 30), estimate(), Fleet(), 0.0), Ticket), "unknown yet"


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    gate = admission()
    hopeless = refused(gate, arrival(deadline=4.0), at_least=100)
    assert hopeless.reason is Reason.DEADLINE_UNREACHABLE
    assert hopeless.retry_after is None, "even an idle fleet takes 100 steps of 0.05 s"
    let_in(gate, arrival(deadline=5.0))


def test_a_deadline_behind_a_queue_is_refused_with_a_time_to_retry() -> None:
    gate = admission()
    now = drained(gate, 100)
    for _ in range(4):
        let_in(gate, arrival(), now=now)
    refusal = refused(gate, arrival(deadline=now + 30), now=now, at_least=100)
    assert refusal.reason is Reason.DEADLINE_UNREACHABLE
    assert refusal.retry_after == pytest.approx(40, rel=0.05)


def test_a_queued_request_becomes_overdue() -> None:
    gate = admission()
    ticket = let_in(gate, arrival(deadline=10.0))
    assert gate.overdue(ticket, ROOM, 5.0) is None
    assert gate.overdue(ticket, ROOM, 6.0) is not None
    assert gate.overdue(let_in(gate, arrival(deadline=math.inf)), ROOM, 1e9) is None


def test_saturation_grows_from_idle_over_full_to_refusing() -> None:
    gate = admission(max_queued=10)
    assert gate.saturation(Fleet(), 0.0) == 0.0
    assert gate.saturation(dataclasses.replace(ROOM, pressure=0.5), 0.0) == pytest.approx(0.4)
    assert gate.saturation(dataclasses.replace(ROOM, pressure=1.7), 0.0) == pytest.approx(0.8)
    levels = []
    for _ in range(10):
        let_in(gate, arrival())
        levels.append(gate.saturation(ROOM, 0.0))
    assert levels == sorted(levels)
    assert levels[4] == pytest.approx(0.9)
    assert levels[-1] == pytest.approx(1.0)
    assert refused(gate, arrival()).reason is Reason.FLEET_SATURATED, "budgets are at their floors before this"


def test_turns_go_by_tokens_served_and_weight() -> None:
    gate = admission()
    heavy, light = tenant("heavy", weight=3.0), tenant("light")
    for _ in range(8):
        let_in(gate, arrival(heavy))
        let_in(gate, arrival(light))
    order = []
    for _ in range(8):
        ticket = first(gate)
        gate.start(ticket, estimate(), now=0.0)
        order.append(ticket.arrival.tenant.name)
    assert order.count("heavy") == 6


def test_a_tenant_is_charged_what_it_used_not_what_was_forecast() -> None:
    gate = admission()
    wordy, brief = tenant("wordy"), tenant("brief")
    for _ in range(6):
        let_in(gate, arrival(wordy))
        let_in(gate, arrival(brief))
    started = []
    for _ in range(6):
        ticket = first(gate)
        name = ticket.arrival.tenant.name
        gate.start(ticket, estimate(), now=0.0)
        gate.end(ticket, 2000 if name == "wordy" else 400, now=0.0)
        started.append(name)
    assert started.count("brief") >= 4


def test_who_does_not_fit_lets_others_pass_but_not_for_long() -> None:
    gate = admission(patience_s=10.0)
    long = let_in(gate, arrival(tenant("long")), now=0.0)
    short = let_in(gate, arrival(tenant("short")), now=5.0)
    assert list(gate.turns(9.0)) == [long, short]
    assert not gate.stops(long, 9.0)
    assert gate.stops(long, 10.0)
    assert not gate.stops(short, 10.0)
