"""How sure a forecast has to be, by what a preemption costs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from r1_cluster.routing import Demand, RankView, policy
from r1_cluster.routing.caution import MOST, caution
from r1_cluster.routing.kv import KvForecast


def of(prompt: float, likely: float, rank: float, gang: float) -> float:
    return float(caution(prompt, likely, np.array([rank]), np.array([gang]))[0, 0])


def test_short_thoughts_on_ranks_that_run_few_are_not_held_for_fear() -> None:
    assert of(20, 150, rank=10, gang=20) == 0.0


def test_long_thoughts_on_ranks_that_step_together_are_held_as_much_as_ever() -> None:
    assert of(1000, 5000, rank=64, gang=64 * 32) == MOST


@pytest.mark.parametrize("rank", [0.0, 1e9])
def test_it_lies_between_none_and_the_most_whatever_runs(rank: float) -> None:
    assert 0.0 <= of(1, 1, rank, rank) <= MOST


def test_it_grows_with_what_has_to_be_computed_again_and_with_who_waits_for_it() -> None:
    base = of(1000, 1000, rank=20, gang=20)
    assert 0.0 < base < of(4000, 1000, rank=20, gang=20) < of(4000, 1000, rank=25, gang=25) < MOST


def test_where_nobody_knows_how_long_it_gets_it_is_the_most() -> None:
    assert of(1000, 0, rank=1, gang=1) == MOST


def test_the_same_forecast_is_held_where_a_preemption_is_dear_and_let_in_where_it_is_cheap() -> None:
    sure = KvForecast((5_000.0,) * 12, (1e6,) * 12)  # with another 4,000: a deviation of 1,000 below the cache's end
    rank = RankView("a", 64, 2, in_flight=20, kv_tokens=10_000, kv_ahead=sure, gang_id="g")
    gang = [dataclasses.replace(rank, worker_id=name) for name in "abcdefgh"]
    small = Demand(20, 600, kv=KvForecast((4_000.0,) * 12), likely_tokens=150.0)
    assert policy("thinking_aware").choose(small, [rank]).rank is rank
    large = small._replace(prompt_tokens=2_000, likely_tokens=1_000.0)
    assert policy("thinking_aware").choose(large, gang).rank is None
