"""The length forecast by tenant, model and budget class."""

from __future__ import annotations

import numpy as np
import pytest
from r1_cluster.routing.lengths import BudgetClass, LengthForecast, LengthKey, Outcome, Prior

KEY = LengthKey("acme", "r1")
NO_LIMIT = {"budget": 1 << 20, "max_tokens": 1 << 20}


def taught(outcome: Outcome, times: int = 200, key: LengthKey = KEY) -> LengthForecast:
    lengths = LengthForecast()
    for _ in range(times):
        lengths.observe(key, outcome)
    return lengths


@pytest.mark.parametrize(
    ("tokens", "name"), [(0, "minimal"), (1024, "minimal"), (1025, "low"), (8192, "medium"), (30_000, "high")]
)
def test_budgets_fall_in_four_classes(tokens: int, name: str) -> None:
    assert BudgetClass.of(tokens) == name


def test_nothing_seen_means_the_prior() -> None:
    tokens = LengthForecast(Prior(1000, 300, 1.0)).curves(KEY).tokens(0.5, **NO_LIMIT)
    assert tokens == pytest.approx(1300, rel=0.15)


def test_a_tenants_own_history_counts_once_there_is_some() -> None:
    lengths = taught(Outcome(4000, 300))
    assert lengths.curves(KEY).tokens(0.5, **NO_LIMIT) == pytest.approx(4300, rel=0.2)


def test_a_new_tenant_is_taken_for_what_the_model_usually_does() -> None:
    lengths = taught(Outcome(4000, 300))
    assert lengths.curves(LengthKey("new", "r1")).tokens(0.5, **NO_LIMIT) == pytest.approx(4300, rel=0.3)
    assert lengths.curves(LengthKey("new", "other")).tokens(0.5, **NO_LIMIT) < 2000


def test_two_tenants_keep_their_own_lengths() -> None:
    lengths = taught(Outcome(4000, 300))
    for _ in range(200):
        lengths.observe(LengthKey("agent", "r1"), Outcome(60, 40))
    assert lengths.curves(LengthKey("agent", "r1")).tokens(0.5, **NO_LIMIT) < 200
    assert lengths.curves(KEY).tokens(0.5, **NO_LIMIT) > 3000


def test_a_forecast_is_bounded_by_the_budget_and_an_answer() -> None:
    lengths = taught(Outcome(4000, 300))
    assert lengths.curves(KEY).tokens(0.9, budget=500, max_tokens=8000) == pytest.approx(800, rel=0.2)
    assert lengths.curves(KEY).tokens(0.9, budget=500, max_tokens=600) == 600


def test_closed_thoughts_do_not_teach_that_thoughts_are_short() -> None:
    lengths = LengthForecast()
    for number in range(400):
        closed = number % 2 == 0
        lengths.observe(KEY, Outcome(4000 if closed else 500, 300, closed=closed))
    assert lengths.curves(KEY).thinking.quantile(0.5) > 3000


def test_survival_follows_the_phase() -> None:
    curves = taught(Outcome(4000, 300)).curves(KEY)
    ahead = np.array([0.0, 100.0, 1000.0, 3000.0])

    def alive(
        generated: int, answered: int, thinking: bool, budget: int = 1 << 20, max_tokens: int = 1 << 20
    ) -> list[float]:
        numbers = (np.array([float(x)]) for x in (generated, answered, budget, max_tokens))
        g, a, b, m = numbers
        return list(
            curves.survival(ahead, generated=g, answered=a, thinking=np.array([thinking]), budget=b, max_tokens=m)[0]
        )

    assert alive(1000, 0, True)[2] > 0.9, "3,000 tokens of thought are still to come"
    assert alive(4100, 100, False)[2] < 0.05, "its answer ends within 200"
    assert alive(1000, 0, True, budget=1000)[2] < 0.05, "its budget is used up: only an answer follows"
    assert alive(1000, 0, True, max_tokens=1500)[2] == 0.0, "past max_tokens there is nothing"


def test_cancelled_requests_teach_at_least_so_long() -> None:
    lengths = taught(Outcome(4000, 300))
    before = lengths.curves(KEY).total.quantile(0.5)
    for _ in range(100):
        lengths.observe(KEY, Outcome(10, 0, closed=False, finished=False))
    assert lengths.curves(KEY).total.quantile(0.5) == pytest.approx(before, rel=0.05)


def test_memory_is_bounded_however_many_tenants_come() -> None:
    lengths = LengthForecast(max_keys=16)
    for number in range(500):
        lengths.observe(LengthKey(f"t{number}", "r1"), Outcome(10, 10))
    assert len(lengths) == 16


def test_what_two_routers_learnt_merges() -> None:
    a, b = taught(Outcome(4000, 300), times=5), taught(Outcome(4000, 300), times=300)
    a.merge(b)
    assert a.curves(KEY).total.quantile(0.5) == pytest.approx(b.curves(KEY).total.quantile(0.5), rel=0.05)


def test_curves_are_computed_again_as_history_grows() -> None:
    lengths = taught(Outcome(100, 10), times=50)
    before = lengths.curves(KEY)
    assert lengths.curves(KEY) is before
    for _ in range(20):
        lengths.observe(KEY, Outcome(100, 10))
    assert lengths.curves(KEY) is not before
