"""A workload's moments, budgets and patterns of arrival."""

from __future__ import annotations

import pytest
from r1_cluster.catalog import MODELS
from r1_cluster.planner import PlanningError
from r1_cluster.planner.demand import demand
from r1_cluster.workload import (
    Bursty,
    Closed,
    Diurnal,
    Fixed,
    LogNormal,
    Poisson,
    RequestClass,
    Switching,
    Workload,
    load,
    shipped,
)
from r1_cluster.workload.arrivals import Arrivals

R1 = MODELS["deepseek-r1"]


def fixed(thinking: int, answer: int = 100, prompt: int = 1000, share: float = 0.5, weight: float = 1) -> RequestClass:
    return RequestClass(
        name=f"t{thinking}", weight=weight, prompt_tokens=Fixed(tokens=prompt), thinking_tokens=Fixed(tokens=thinking),
        answer_tokens=Fixed(tokens=answer), prefix_share=share,
    )  # fmt: skip


def of(*classes: RequestClass, arrivals: Arrivals | None = None) -> Workload:
    return Workload(name="made", classes=classes, arrivals=arrivals or Closed())


def test_a_request_of_known_lengths_holds_its_prompt_and_half_its_output_on_average() -> None:
    found = demand(of(fixed(900)), R1, None)
    assert (found.prompt, found.cached, found.thinking, found.output) == (1000, 500, 900, 1000)
    assert found.context == pytest.approx(1500)
    assert found.context_square == pytest.approx(1000**2 + 1000 * 1000 + 1000**2 / 3)
    assert (found.prompt_p95, found.thinking_p95, found.cut, found.rate) == (1000, 900, 0, None)


def test_long_thoughts_count_by_the_time_they_hold_their_tokens() -> None:
    found = demand(of(fixed(0), fixed(9900)), R1, None)
    short, long = 100, 10000
    assert found.context == pytest.approx((short * (1000 + short / 2) + long * (1000 + long / 2)) / (short + long))
    assert found.thinking_p95 == 9900


def test_a_budget_cuts_thoughts_and_the_context_with_them() -> None:
    free, cut = (demand(of(fixed(8000), fixed(500, weight=3)), R1, budget) for budget in (None, 4096))
    assert free.cut == 0
    assert cut.cut == pytest.approx(0.25)
    assert cut.thinking == pytest.approx((4096 + 3 * 500) / 4)
    assert cut.thinking_p95 == 4096
    assert cut.max_tokens == 4096 + 1024 + 2
    assert cut.max_model_len == 6144
    assert free.max_tokens == 32768


def test_a_class_keeps_its_own_budget_where_it_is_tighter() -> None:
    own = fixed(8000).model_copy(update={"budget": 1000})
    assert demand(of(own), R1, 4096).thinking == 1000


@pytest.mark.parametrize("name", shipped())
def test_the_moments_of_shipped_workloads_are_those_of_their_distributions(name: str) -> None:
    workload = load(name)
    found = demand(workload, R1, None)
    assert found.prompt == pytest.approx(workload.prompt_mean())
    pairs = zip(workload.shares, workload.classes, strict=True)
    assert found.cached == pytest.approx(sum(s * c.prefix_share * c.prompt_tokens.mean() for s, c in pairs))
    assert found.output == pytest.approx(workload.output_mean(), rel=0.02)
    assert demand(workload, R1, 4096).output == pytest.approx(workload.output_mean(4096), rel=0.02)


@pytest.mark.parametrize(
    ("arrivals", "rate", "dispersion"),
    [
        (Closed(), None, 1.0),
        (Poisson(rate=2.0), 2.0, 1.0),
        (Bursty(rate=2.0, cv=2.0), 2.0, 2.5),
        (Diurnal(rate=2.0, swing=0.5), 3.0, 1.0),
        (Switching(rate=2.0, surge=4.0, share=0.25), 2.0 * 4 / 1.75, 1.0),
    ],
)
def test_days_and_surges_are_sized_for_their_peak_and_clumps_for_their_spread(
    arrivals: Arrivals, rate: float | None, dispersion: float
) -> None:
    found = demand(of(fixed(100), arrivals=arrivals), R1, None)
    assert found.rate == (None if rate is None else pytest.approx(rate))
    assert found.dispersion == dispersion
    assert demand(of(fixed(100), arrivals=Poisson(rate=2.0)), R1, None, rate=7.0).rate == 7.0


def test_a_context_without_room_for_a_thought_is_refused() -> None:
    with pytest.raises(PlanningError, match="no room to think: prompts of up to 1,000 and answers of up to 1,026"):
        demand(of(fixed(100)), R1, None, max_context=2000)


def test_the_context_is_what_the_longest_request_needs_and_no_more_than_the_model_has() -> None:
    long = RequestClass(
        name="long", prompt_tokens=LogNormal(median=90000, sigma=0.5, high=150000), thinking_tokens=Fixed(tokens=100),
        answer_tokens=Fixed(tokens=10),
    )  # fmt: skip
    assert demand(of(long), R1, None).max_model_len == R1.max_position_embeddings
