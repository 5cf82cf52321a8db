"""Thinking budgets: asked, tenant, saturation, room for an answer."""

from __future__ import annotations

import itertools

import pytest
from r1_cluster.routing.budget import Asked, BudgetRules, Effort, resolve, room_for_thought
from r1_cluster.routing.tenants import BudgetPolicy

RULES = BudgetRules()
FREE = BudgetPolicy()
BOUND = BudgetPolicy(default=4000, floor=1000, ceiling=8000)


def applied(asked: Asked, policy: BudgetPolicy = BOUND, max_tokens: int = 32_768, saturation: float = 0.0) -> int:
    return resolve(asked, policy, RULES, max_tokens=max_tokens, saturation=saturation).applied


def reasons(asked: Asked, policy: BudgetPolicy = BOUND, max_tokens: int = 32_768, saturation: float = 0.0) -> list[str]:
    steps = resolve(asked, policy, RULES, max_tokens=max_tokens, saturation=saturation).steps
    return [step.reason for step in steps]


def test_a_request_gets_what_it_asks_within_the_ceiling() -> None:
    assert applied(Asked(tokens=3000)) == 3000
    assert applied(Asked(tokens=9000)) == 8000
    assert reasons(Asked(tokens=9000)) == ["asked", "ceiling"]


def test_a_request_may_ask_for_less_than_the_floor_and_for_nothing() -> None:
    assert applied(Asked(tokens=10), saturation=1.0) == 10
    assert applied(Asked(tokens=0)) == 0


def test_unlimited_means_the_ceiling_and_without_one_the_room() -> None:
    assert applied(Asked(tokens=-1)) == 8000
    assert applied(Asked(tokens=-1), FREE) == 32_768 - 1024 - 2
    assert reasons(Asked(tokens=-1), FREE) == ["asked", "room_for_answer"]


def test_a_fleet_sized_for_short_thoughts_lets_no_tenant_think_longer() -> None:
    fleet = BudgetRules(ceiling=4096)
    for policy in (FREE, BOUND):
        found = resolve(Asked(tokens=-1), policy, fleet, max_tokens=32_768, saturation=0.0)
        assert (found.applied, found.reason) == (4096, "fleet_ceiling")
    assert resolve(Asked(tokens=100), FREE, fleet, max_tokens=32_768, saturation=0.0).applied == 100


@pytest.mark.parametrize(("effort", "tokens"), [(Effort.LOW, 1024), (Effort.MEDIUM, 8000), (Effort.HIGH, 8000)])
def test_efforts_are_tokens_within_the_ceiling(effort: Effort, tokens: int) -> None:
    assert applied(Asked(effort=effort)) == tokens


def test_tokens_go_before_effort_and_effort_before_the_default() -> None:
    assert applied(Asked(tokens=50, effort=Effort.HIGH)) == 50
    assert reasons(Asked(effort=Effort.LOW)) == ["effort_low"]
    assert reasons(Asked()) == ["default"]
    assert applied(Asked()) == 4000


@pytest.mark.parametrize(("saturation", "tokens"), [(0.0, 8000), (0.8, 8000), (0.9, 4500), (1.0, 1000), (7.0, 1000)])
def test_saturation_tightens_in_a_straight_line_down_to_the_floor(saturation: float, tokens: int) -> None:
    assert applied(Asked(tokens=-1), saturation=saturation) == pytest.approx(tokens, abs=1)


@pytest.mark.parametrize(("max_tokens", "room"), [(1, 0), (2, 0), (4, 1), (16, 10), (1000, 748), (32_768, 31_742)])
def test_there_is_always_room_for_an_answer(max_tokens: int, room: int) -> None:
    assert room_for_thought(max_tokens, RULES) == room
    assert applied(Asked(tokens=-1), FREE, max_tokens) == room


def test_the_response_can_say_asked_applied_and_why() -> None:
    budget = resolve(Asked(tokens=9000), BOUND, RULES, max_tokens=32_768, saturation=0.9)
    assert (budget.asked, budget.applied, budget.reason) == (9000, 4500, "saturation")
    assert budget.explain() == "asked 9000, ceiling 8000, saturation 4500"
    free = resolve(Asked(), FREE, RULES, max_tokens=100, saturation=0.0)
    assert (free.asked, free.applied) == (None, 73)
    assert free.explain() == "default unlimited, room_for_answer 73"


ASKS = [Asked(), *(Asked(tokens=t) for t in (-1, 0, 1, 999, 1000, 5000, 100_000)), *(Asked(effort=e) for e in Effort)]
POLICIES = [FREE, BOUND, BudgetPolicy(floor=0, ceiling=0), BudgetPolicy(default=0), BudgetPolicy(floor=9000)]
CASES = list(itertools.product(ASKS, POLICIES, (1, 2, 3, 17, 1500, 32_768), (0.0, 0.79, 0.8, 0.93, 1.0, 3.0)))


@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_is_asked_the_bounds_hold(policy: BudgetPolicy) -> None:
    for asked, own, max_tokens, saturation in CASES:
        if own is not policy:
            continue
        budget = resolve(asked, policy, RULES, max_tokens=max_tokens, saturation=saturation)
        idle = resolve(asked, policy, RULES, max_tokens=max_tokens, saturation=0.0)
        assert 0 <= budget.applied <= room_for_thought(max_tokens, RULES)
        assert policy.ceiling is None or budget.applied <= policy.ceiling
        assert budget.asked is None or budget.applied <= budget.asked
        assert budget.applied >= min(policy.floor, idle.applied), "saturation never goes below the floor"
        numbers = [step.tokens for step in budget.steps if step.tokens is not None]
        assert numbers == sorted(numbers, reverse=True)
        assert budget.applied == numbers[-1]


def test_more_saturation_never_means_more_thinking() -> None:
    levels = [applied(Asked(), saturation=s / 50) for s in range(60)]
    assert levels == sorted(levels, reverse=True)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 for no limit"):
        Asked(tokens=-2)
