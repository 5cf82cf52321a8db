"""The comparison of routing policies, in small: deterministic, and won by thinking_aware."""

from __future__ import annotations

from typing import Any

import pytest
from r1_bench.policies import measure
from r1_cluster.routing import SHIPPED

# About what the ranks can take: the forecast decides.
N, PER_SECOND = 3000, 9.0


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    names = ("least_load", "prefix_aware", "thinking_aware")
    return {name: measure(SHIPPED[name], N, PER_SECOND, seed=3, tenants_apart=True) for name in names}


def test_a_run_is_the_same_each_time() -> None:
    one, two = (measure(SHIPPED["thinking_aware"], 200, 6.0, seed=1, tenants_apart=False) for _ in range(2))
    assert {**one, "cpu_s": 0} == {**two, "cpu_s": 0}


@pytest.mark.parametrize("other", ["least_load", "prefix_aware"])
def test_thinking_aware_preempts_less_and_serves_better(rows: dict[str, dict[str, Any]], other: str) -> None:
    ours, theirs = rows["thinking_aware"], rows[other]
    assert ours["completed"] == theirs["completed"] == N
    assert ours["preemptions"] < theirs["preemptions"] / 2
    assert ours["tpot_ms_p99"] < theirs["tpot_ms_p99"]
    assert ours["goodput_per_s"] > theirs["goodput_per_s"]
