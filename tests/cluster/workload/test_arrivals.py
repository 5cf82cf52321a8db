"""Arrivals: the rate they say, the burstiness they say, the same for a seed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydantic import ValidationError
from r1_cluster.workload.arrivals import Arrivals, Bursty, Closed, Diurnal, Poisson, Switching, Trace

OPEN = (
    Poisson(rate=5.0),
    Bursty(rate=5.0, cv=2.0),
    Switching(rate=5.0, surge=3.0, burst_s=2.0),
    Diurnal(rate=5.0, period_s=100.0),
)


def first(arrivals: Arrivals, n: int, seed: int = 1) -> list[float]:
    return list(itertools.islice(arrivals.times(np.random.default_rng(seed)), n))


@pytest.mark.parametrize("arrivals", OPEN, ids=lambda each: each.kind)
def test_requests_come_in_order_at_the_rate_and_the_same_for_a_seed(arrivals: Poisson) -> None:
    times = first(arrivals, 40_000)
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(5.0, rel=0.05)
    assert times[:100] == first(arrivals, 100)
    assert arrivals.at_rate(20.0).rate == 20.0
    assert type(arrivals.at_rate(20.0)) is type(arrivals)


def test_bursts_are_burstier_than_independent_users() -> None:
    spread = [np.diff(first(arrivals, 40_000)).std() * 5.0 for arrivals in OPEN[:3]]
    assert spread[0] == pytest.approx(1.0, rel=0.05)
    assert spread[1] == pytest.approx(2.0, rel=0.05)
    assert spread[2] > 1.08


def test_a_day_has_a_peak_and_a_trough() -> None:
    times = np.array(first(Diurnal(rate=5.0, swing=0.8, period_s=100.0), 40_000)) % 100
    peak, trough = ((times < 10) | (times >= 90)).sum(), ((times >= 40) & (times < 60)).sum()
    assert peak / trough == pytest.approx(1.75 / 0.25, rel=0.2)


def test_a_trace_is_played_at_its_own_pace_or_another() -> None:
    trace = Trace(at=(0.0, 1.0, 3.0, 4.0))
    assert trace.rate == 1.0
    assert list(trace.at_rate(2.0).times(np.random.default_rng(0))) == [0.0, 0.5, 1.5, 2.0]
    for bad in ((0.0, 0.0), (1.0, 0.5), (-1.0, 1.0)):
        with pytest.raises(ValidationError, match="in order"):
            Trace(at=bad)


def test_a_closed_loop_has_no_rate_and_is_always_ready() -> None:
    assert Closed(concurrency=4).rate is None
    assert first(Closed(), 3) == [0.0, 0.0, 0.0]
