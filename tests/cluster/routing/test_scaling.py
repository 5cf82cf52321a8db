from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from r1_cluster.routing.scaling import FleetDemand, ScalingRules, ScalingState, decide

RULES = ScalingRules(min_gangs=1, max_gangs=4, up_after_s=15, down_after_s=900)
CALM = FleetDemand(gangs=2, pressure=0.6)


def size(demand: FleetDemand, rules: ScalingRules = RULES) -> int:
    """After the demand has stayed as it is for an hour."""
    state, gangs = ScalingState(), 0
    for now in (0.0, 3600.0):
        got, state = decide(demand, rules, state, now)
        gangs = got.gangs
    return gangs


@pytest.mark.parametrize(
    ("change", "gangs"),
    [
        ({}, 2),
        ({"pressure": 0.7}, 2),
        ({"pressure": 0.75}, 3),
        ({"pressure": 1.05}, 3),
        ({"pressure": 1.3}, 4),
        ({"pressure": 9.0}, 4),
        ({"queued": 5, "wait_s": 10.0}, 2),
        ({"queued": 5, "wait_s": 20.0}, 3),
        ({"queued": 0, "wait_s": 20.0}, 2),
        ({"slo_burn": 3.0}, 3),
        ({"slo_burn": 3.0, "pressure": 0.3}, 2),
        ({"pressure": 0.24}, 1),
        ({"pressure": 0.26}, 2),
        ({"pressure": 0.1, "queued": 1}, 2),
        ({"pressure": 0.1, "slo_burn": 2.0}, 2),
        ({"gangs": 1, "pressure": 0.0}, 1),
        ({"gangs": 1, "pressure": 3.0}, 2),
        ({"gangs": 1, "starting": 1, "pressure": 0.9}, 2),
        ({"gangs": 1, "starting": 1, "pressure": 0.0}, 2),
        ({"gangs": 0, "starting": 1, "queued": 50, "wait_s": 60.0}, 1),
        ({"gangs": 6}, 4),
        ({"gangs": 0}, 1),
    ],
    ids=str,
)
def test_the_size_follows_forecast_queue_and_service_level(change: dict[str, Any], gangs: int) -> None:
    assert size(dataclasses.replace(CALM, **change)) == gangs


def test_a_short_rush_adds_nothing_and_a_lasting_one_does() -> None:
    busy = dataclasses.replace(CALM, pressure=0.9)
    first, state = decide(busy, RULES, ScalingState(), 0.0)
    calm, between = decide(CALM, RULES, state, 10.0)
    again, state = decide(busy, RULES, between, 16.0)
    assert (first.gangs, calm.gangs, again.gangs) == (2, 2, 2)
    lasting, _ = decide(busy, RULES, state, 31.0)
    assert lasting.gangs == 3
    assert "0.90" in lasting.reason


def test_a_gang_leaves_only_after_a_long_quiet_and_one_at_a_time() -> None:
    idle = FleetDemand(gangs=4, pressure=0.01)
    state, sizes = ScalingState(), []
    for now in range(0, 1000, 100):
        got, state = decide(idle, RULES, state, float(now))
        sizes.append(got.gangs)
    assert sizes == [4] * 9 + [3]


def test_one_busy_moment_starts_the_quiet_anew() -> None:
    idle = FleetDemand(gangs=2, pressure=0.1)
    _, state = decide(idle, RULES, ScalingState(), 0.0)
    _, state = decide(dataclasses.replace(idle, queued=1), RULES, state, 500.0)
    got, _ = decide(idle, RULES, state, 950.0)
    assert got.gangs == 2


def test_a_fleet_follows_a_day_without_flapping() -> None:
    """Load in gangs' worth of KV: up to 2.4 and back to 0.3, with noise that crosses every threshold."""
    load = [0.4] * 60 + [0.4 + 0.02 * i for i in range(100)] + [2.4] * 60 + [2.4 - 0.02 * i for i in range(105)]
    load += [0.3] * 120
    noise = [0.0, 0.12, -0.12, 0.06]
    gangs, state, sizes = 1, ScalingState(), []
    for minute, value in enumerate(load):
        pressure = max(0.0, value + noise[minute % 4]) / gangs
        got, state = decide(FleetDemand(gangs=gangs, pressure=pressure), RULES, state, 60.0 * minute)
        gangs = got.gangs
        sizes.append(gangs)
    changes = sum(a != b for a, b in itertools.pairwise(sizes))
    assert max(sizes) == 4
    assert sizes[-1] == 1
    assert changes == 6  # 1 to 4 and back


@pytest.mark.parametrize(
    "wrong", [{"min_gangs": 0}, {"min_gangs": 3, "max_gangs": 2}, {"low_pressure": 0.8}, {"target_pressure": 1.5}]
)
def test_contradicting_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"gangs|pressure"):
        ScalingRules(**wrong)
