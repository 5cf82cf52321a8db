"""The KV forecast of requests and ranks."""

from __future__ import annotations

import numpy as np
import pytest
from r1_cluster.routing.kv import (
    AHEAD,
    HORIZONS,
    NOTHING,
    Following,
    KvForecast,
    Shape,
    Standing,
    forecast_new,
    forecast_of_others,
)
from r1_cluster.routing.ledger import KvLedger
from r1_cluster.routing.lengths import LengthForecast, LengthKey, Outcome

KEY = LengthKey("acme", "r1")
SHAPE = Shape(KEY, prompt_tokens=500, max_tokens=8000, budget=7000)


@pytest.fixture
def lengths() -> LengthForecast:
    """Every request thinks 2,000 tokens and answers in 200."""
    known = LengthForecast()
    for _ in range(300):
        known.observe(KEY, Outcome(2000, 200))
    return known


@pytest.fixture
def ledger(lengths: LengthForecast) -> KvLedger:
    return KvLedger(lengths, refresh_s=1.0)


def at(forecast: KvForecast, steps: int) -> float:
    return forecast.mean.item(HORIZONS.index(steps))


def test_a_new_request_holds_its_prompt_grows_a_token_a_step_and_ends(lengths: LengthForecast) -> None:
    forecast = forecast_new(lengths.curves(KEY), SHAPE)
    assert at(forecast, 0) == 500
    assert at(forecast, 1024) == pytest.approx(1524, rel=0.05)
    assert at(forecast, 4096) < 500
    assert forecast.peak() == pytest.approx(2500, rel=0.2)


def test_a_cache_is_given_out_in_whole_blocks(lengths: LengthForecast, ledger: KvLedger) -> None:
    assert at(forecast_new(lengths.curves(KEY), SHAPE, block=128), 0) == 512
    ledger.block_tokens = 128
    ledger.place("a", SHAPE, Standing(), now=0.0)
    assert at(ledger.ahead("a", 0.0), 0) == 512
    assert at(ledger.ahead("a", 2.0), 16) == pytest.approx(640)


def test_other_routers_requests_grow_and_end_as_the_models_do(lengths: LengthForecast) -> None:
    """Met at any age of their 2,200 tokens, half of them are gone after 1,024 more."""
    alive = lengths.of_model("r1").of_running(AHEAD)
    assert alive[0] == 1.0
    assert alive[HORIZONS.index(1024)] == pytest.approx(0.5, abs=0.1)
    both = forecast_of_others(np.array([4000.0, 4000.0]), np.array([4.0, 0.0]), alive)
    growing, staying = KvForecast.of(both[0]), KvForecast.of(both[1])
    assert at(growing, 0) == at(staying, 0) == 4000
    assert at(growing, 512) > 4000
    assert at(growing, 4096) < 1000
    assert staying.mean.tolist() == [4000] * len(HORIZONS)
    assert not staying.variance.any()


def test_the_variance_is_largest_where_the_end_is_uncertain(lengths: LengthForecast) -> None:
    forecast = forecast_new(lengths.curves(KEY), SHAPE)
    assert forecast.variance[0] == 0
    assert forecast.peak(deviations=1.0) > forecast.peak()


def test_a_rank_holds_what_was_placed_and_no_longer_what_was_removed(ledger: KvLedger) -> None:
    first = ledger.place("a", SHAPE, Standing(), now=0.0)
    second = ledger.place("a", SHAPE, Standing(), now=0.0)
    assert ledger.count("a") == 2
    assert at(ledger.ahead("a", 0.0), 0) == 1000
    ledger.remove(first)
    assert at(ledger.ahead("a", 0.0), 0) == 500
    ledger.remove(second)
    ledger.remove(second)
    assert ledger.ahead("a", 0.0) is NOTHING


def test_growth_is_read_once_the_forecast_is_old(ledger: KvLedger) -> None:
    following = Following()
    ledger.place("a", SHAPE, following, now=0.0)
    following.of = Standing(completion_tokens=1800)
    assert at(ledger.ahead("a", 0.5), 0) == 500
    assert at(ledger.ahead("a", 1.0), 0) == 2300
    following.of = Standing(completion_tokens=2150, answer_tokens=150, thinking=False)
    assert at(ledger.ahead("a", 2.0), 1024) < 100, "an answer that is nearly over frees its cache soon"


def test_a_rank_that_is_gone_is_forgotten_with_its_requests(ledger: KvLedger) -> None:
    number = ledger.place("a", SHAPE, Standing(), now=0.0)
    ledger.forget("a")
    ledger.forget("never seen")
    ledger.remove(number)
    assert ledger.count("a") == 0


def test_two_thoughts_at_different_ages_peak_lower_than_two_at_the_same(ledger: KvLedger) -> None:
    ledger.place("same", SHAPE, Standing(), now=0.0)
    ledger.place("same", SHAPE, Standing(), now=0.0)
    ledger.place("apart", SHAPE, Standing(completion_tokens=1900), now=0.0)
    ledger.place("apart", SHAPE, Standing(), now=0.0)
    assert ledger.ahead("apart", 1.0).peak() < ledger.ahead("same", 1.0).peak()


def test_forecasts_add_up() -> None:
    one = KvForecast(tuple(map(float, range(len(HORIZONS)))), (1.0,) * len(HORIZONS))
    assert (one + one).peak() == one.peak_with(one) == 2 * (len(HORIZONS) - 1)
    assert one.peak_with(NOTHING, deviations=2.0, shift=10.0) == len(HORIZONS) - 1 + 2 + 10
