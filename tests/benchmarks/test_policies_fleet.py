"""The load and the summary of the policy comparison on a real fleet."""

from __future__ import annotations

from pathlib import Path

import pytest
from r1_bench.policies_fleet import Served, asked, ranks, small_plan, summary
from r1_cluster.plan import Plan


def test_every_policy_is_asked_the_same_at_the_same_times() -> None:
    assert asked(40, 5.0, 0.25, seed=1) == asked(40, 5.0, 0.25, seed=1)
    assert asked(40, 5.0, 0.25, seed=1) != asked(40, 5.0, 0.25, seed=2)


def test_arrivals_come_at_the_asked_rate() -> None:
    assert asked(400, 5.0, 0.25, seed=0)[-1][0] == pytest.approx(80, rel=0.1)


def test_a_failed_or_slow_request_is_no_goodput() -> None:
    served = [Served(0.1, 0.02, 50), Served(9.0, 0.02, 50), Served(0.1, 0.9, 50), Served(error="refused")]
    got = summary(served, seconds=10)
    assert (got["goodput_per_s"], got["good_share"], got["errors"]) == (0.1, 0.25, 1)


def test_the_plan_differs_in_cache_and_seats_alone(tmp_path: Path) -> None:
    plan, shipped = Plan.load(small_plan(tmp_path, 0.05, 32)), Plan.load("nano-dp2-ep2")
    assert plan.fleet.kv_cache_gib_per_rank == 0.05
    assert plan.engine.max_num_seqs == 32
    assert plan.pools == shipped.pools
    assert plan.hash != shipped.hash


def test_the_gauges_of_all_ranks_are_summed() -> None:
    metrics = "".join(
        f'r1_rank_{name}{{model="m",rank="{rank}"}} {value}\n'
        for rank in (0, 1)
        for name, value in (("running", 2.0), ("waiting", 0.0), ("preemptions", 3.0 + rank), ("step_seconds", 0.1))
    )
    assert ranks(metrics) == {"running": 4, "waiting": 0, "preemptions": 7}
    assert ranks("") == {"running": 0, "waiting": 0, "preemptions": 0}
