"""The dispatcher: one model's requests from their arrival to their end."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from r1_cluster.routing import RankView, policy
from r1_cluster.routing.admission import Arrival, Reason, Refusal, Rules, State, Ticket
from r1_cluster.routing.budget import Asked, BudgetRules
from r1_cluster.routing.dispatcher import SHORTLIST, Dispatcher, Late, Start
from r1_cluster.routing.kv import Standing
from r1_cluster.routing.lengths import Outcome
from r1_cluster.routing.tenants import BudgetPolicy, Tenant

TENANT = Tenant(name="acme", budget=BudgetPolicy(floor=500))
ARRIVAL = Arrival(TENANT, "r1", prompt_tokens=200, max_tokens=8000)


def rank(worker_id: str, **changes: Any) -> RankView:
    base = RankView(worker_id, max_num_seqs=8, max_waiting_requests=2, kv_tokens=20_000, step_time_s=0.05)
    return dataclasses.replace(base, **changes)


RANKS = (rank("a"), rank("b"))


@pytest.fixture
def desk() -> Dispatcher:
    """It knows that requests think 2,000 tokens and answer in 200."""
    known = Dispatcher(policy("thinking_aware"), rules=Rules(max_queued=20))
    for _ in range(300):
        known.lengths.observe(known.estimate(ARRIVAL, 0.0).shape.key, Outcome(2000, 200))
    return known


def offer(desk: Dispatcher, arrival: Arrival = ARRIVAL, now: float = 0.0) -> Ticket:
    got = desk.offer(arrival, RANKS, now)
    assert isinstance(got, Ticket), got
    return got


def start(desk: Dispatcher, ranks: tuple[RankView, ...] = RANKS, now: float = 0.0) -> Start:
    got = desk.start_next(ranks, now)
    assert isinstance(got, Start)
    return got


def test_a_request_starts_on_a_rank_and_says_why(desk: Dispatcher) -> None:
    ticket = offer(desk)
    started = start(desk)
    assert started.ticket is ticket
    assert started.ranks[0].worker_id == "a"
    assert set(started.choices[0].scores) == {"a", "b"}
    assert desk.start_next(RANKS, 0.0) is None
    last = desk.recent[-1]
    assert (last.tenant, last.outcome, last.budget) == ("acme", "started", "default unlimited, room_for_answer 6974")
    assert last.explanation.startswith("picked a; a=")


def test_where_nobody_asks_why_no_decision_is_kept() -> None:
    desk = Dispatcher(policy("thinking_aware"), remembered=0)
    offer(desk)
    assert start(desk).choices[0].explain().startswith("picked a; a=")
    assert not desk.recent


def test_what_was_just_placed_counts_before_any_rank_reports_it(desk: Dispatcher) -> None:
    picked = []
    for _ in range(4):
        offer(desk)
        picked.append(start(desk).ranks[0].worker_id)
    assert picked == ["a", "b", "a", "b"]


def test_requests_are_held_once_their_forecast_fills_the_fleet_and_start_as_others_end(desk: Dispatcher) -> None:
    running = []
    for _ in range(20):
        ticket = offer(desk)
        if desk.start_next(RANKS, 0.0) is None:
            break
        running.append(ticket)
    assert 8 <= len(running) < 18, "about 2,400 tokens each at their largest, 40,000 in all"
    assert desk.admission.queued == 1
    for done in running[:2]:
        desk.end(done, [Outcome(2000, 200)], now=60.0)
    assert start(desk, now=60.0).ticket is ticket


def test_growth_is_followed_without_being_pushed(desk: Dispatcher) -> None:
    offer(desk)
    started = start(desk)
    started.following[0].of = Standing(completion_tokens=1500)
    seen = {name: desk.ledger.ahead(name, 5.0).mean[0] for name in "ab"}
    assert seen == {"a": 1700, "b": 0}


def test_all_choices_of_a_request_are_placed_each_where_it_fits_best(desk: Dispatcher) -> None:
    offer(desk, ARRIVAL._replace(n=4))
    started = start(desk)
    assert [view.worker_id for view in started.ranks] == ["a", "b", "a", "b"]
    assert desk.ledger.count("a") == desk.ledger.count("b") == 2
    desk.end(started.ticket, [Outcome(10, 10)] * 4, now=1.0)
    assert desk.ledger.count("a") == desk.ledger.count("b") == 0


def test_a_conversation_returns_to_the_rank_that_has_its_prompt(desk: Dispatcher) -> None:
    prompt = list(range(640))
    chain = desk.prefix.chain(prompt, "acme")
    offer(desk, ARRIVAL._replace(chain=chain))
    first = start(desk)
    desk.end(first.ticket, [Outcome(100, 10)], now=1.0)
    ranks = (rank("a", last_pick=9), rank("b"))
    longer = desk.prefix.chain([*prompt, *range(900, 1000)], "acme")
    offer(desk, ARRIVAL._replace(prompt_tokens=740, chain=longer), now=1.0)
    again = start(desk, ranks, now=1.0)
    assert again.ranks[0].worker_id == first.ranks[0].worker_id == "a"
    assert again.choices[0].scores["a"]["prefix"] > again.choices[0].scores["b"]["prefix"] == 0


def test_another_tenants_same_prompt_is_no_reason(desk: Dispatcher) -> None:
    prompt = list(range(640))
    offer(desk, ARRIVAL._replace(chain=desk.prefix.chain(prompt, "acme")))
    desk.end(start(desk).ticket, [Outcome(100, 10)], now=1.0)
    offer(desk, ARRIVAL._replace(chain=desk.prefix.chain(prompt, "other")), now=1.0)
    assert start(desk, (rank("a", last_pick=9), rank("b")), now=1.0).ranks[0].worker_id == "b"


def test_budgets_tighten_as_the_queue_fills_and_nothing_is_refused_before_they_are_at_the_floor(
    desk: Dispatcher,
) -> None:
    full = (rank("a", kv_usage=1.0, running=8),)
    budgets = []
    while True:
        got = desk.offer(ARRIVAL, full, 0.0)
        if isinstance(got, Refusal):
            break
        budgets.append(got.estimate.budget.applied)
    assert got.reason is Reason.FLEET_SATURATED
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[0] == 6974
    assert budgets[-1] < 900
    assert desk.recent[-1].outcome == "fleet_saturated"
    assert desk.recent[-1].budget.endswith("saturation 500")


def test_the_budget_is_the_one_of_the_moment_it_starts(desk: Dispatcher) -> None:
    waiting = [offer(desk) for _ in range(19)]
    tight = waiting[-1].estimate.budget.applied
    for ticket in waiting[:-1]:
        desk.end(ticket, (), now=1.0)
    started = start(desk, now=1.0)
    assert started.ticket is waiting[-1]
    assert tight < started.ticket.estimate.budget.applied
    assert started.ticket.estimate.shape.budget == started.ticket.estimate.budget.applied


def test_a_request_whose_time_runs_out_while_it_waits_is_refused_not_started(desk: Dispatcher) -> None:
    ticket = offer(desk, ARRIVAL._replace(deadline=200.0))
    got = desk.start_next(RANKS, 199.0)
    assert isinstance(got, Late)
    assert got.ticket is ticket
    assert got.refusal.reason is Reason.DEADLINE_UNREACHABLE
    assert ticket.state is State.ENDED


def test_a_request_may_move_to_another_rank_and_is_counted_there_only(desk: Dispatcher) -> None:
    offer(desk)
    started = start(desk)
    desk.left("a")
    choice, following = desk.again(started.ticket, 0, RANKS[1:], 5.0, resumed_tokens=700)
    following.of = Standing(completion_tokens=700)
    assert choice.rank is not None
    assert desk.ledger.count("a") == 0
    assert desk.ledger.count("b") == 1
    desk.end(started.ticket, [Outcome(2000, 200)], now=9.0)
    assert desk.ledger.count("b") == 0


def test_asked_budgets_bound_the_reservation() -> None:
    desk = Dispatcher(policy("least_load"), budgets=BudgetRules())
    small = desk.estimate(ARRIVAL._replace(asked=Asked(tokens=50)), 0.0)
    large = desk.estimate(ARRIVAL, 0.0)
    assert small.budget.applied == 50
    assert small.tokens < large.tokens
    assert large.tokens <= ARRIVAL.prompt_tokens + ARRIVAL.max_tokens


def test_with_no_ranks_requests_wait() -> None:
    desk = Dispatcher(policy("thinking_aware"))
    assert isinstance(desk.offer(ARRIVAL, (), 0.0), Ticket)
    assert desk.start_next((), 0.0) is None


def test_of_many_ranks_the_emptiest_and_those_with_the_prompt_are_looked_at() -> None:
    desk = Dispatcher(policy("thinking_aware"))
    chain = desk.prefix.chain(range(640))
    desk.prefix.sent("r99", chain)
    many = tuple(rank(f"r{i}", in_flight=7 if i >= 40 else i % 4, draining=i == 0) for i in range(100))
    assert isinstance(desk.offer(ARRIVAL._replace(chain=chain), many, 0.0), Ticket)
    started = start(desk, many)
    assert len(started.choices[0].scores) == SHORTLIST + 1
    assert "r99" in started.choices[0].scores
    assert "r0" not in started.choices[0].scores
