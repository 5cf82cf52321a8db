"""What a Plan promises holds when the router's own code runs it: at its stated load, and near by its predictions."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from r1_cluster.catalog import MODELS
from r1_cluster.plan import Plan, Predicted
from r1_cluster.planner import Request, parse_fleet, parse_slo, plan
from r1_cluster.simulator import Simulation
from r1_cluster.workload import load

CASES = {  # workload, drafts
    ("chat", 0): "ttft_p95=1s,tpot_p95=30ms",
    ("chat", 1): "ttft_p95=1s,tpot_p95=30ms",
    ("agent", 0): "ttft_p95=3s,tpot_p95=60ms",
}
Case = tuple[str, int]
REQUESTS, FULL = 6000, range(2000, 5000)  # the first fill the fleet, the last see it run dry
ROUNDING = 1.01  # of the simulator's percentiles


@cache
def planned(case: Case) -> Plan:
    workload, drafts = case
    asked = Request(
        model=MODELS["deepseek-r1"],
        fleet=parse_fleet("8xH200"),
        workload=load(workload),
        slo=parse_slo(CASES[case]),
        kv_dtypes=("fp8",),
        drafts=(drafts,),
    )
    return plan(asked).plan


@cache
def run(case: Case) -> tuple[Predicted, dict[str, Any]]:
    """The plan's predictions, and what the simulator says at the most requests/s it was planned for."""
    made = planned(case)
    assert made.predicted is not None
    asked = load(case[0]).at_rate(made.predicted.max_requests_per_second)
    return made.predicted, Simulation(made, asked, requests=REQUESTS, seed=1, judged=FULL).run().as_dict(0.0)


@pytest.mark.parametrize("case", CASES)
def test_a_plan_keeps_its_slo_at_the_most_it_says_it_carries(case: Case) -> None:
    _, told = run(case)
    slo = parse_slo(CASES[case])
    assert told["ttft"]["p95"] <= (slo.ttft_p95 or 0) * ROUNDING
    assert told["tpot"]["p95"] <= (slo.tpot_p95 or 0) * ROUNDING
    assert told["refused"].get("fleet_saturated", 0) <= 0.002 * REQUESTS


@pytest.mark.parametrize("case", CASES)
def test_a_plan_is_not_far_on_the_safe_side_either(case: Case) -> None:
    predicted, told = run(case)
    assert 0.8 < told["tpot"]["mean"] / predicted.tpot_mean < 1.05
    assert told["ttfa"]["p95"] / predicted.ttfa_p95 < 1.1, "that of 3,000 thoughts varies by a tenth itself"
