"""The simulator beside the fleet it was calibrated on."""

from __future__ import annotations

import argparse

import pytest
from r1_bench.calibration import GATES, compare, judged
from r1_bench.fleet import Fleet
from r1_cluster.plan import Plan

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("served", ["nano-tp1"], indirect=True)
def test_what_a_calibrated_simulation_says_is_what_the_fleet_does(served: Fleet) -> None:
    args = argparse.Namespace(burst=40, loads=[0.5], rounds=4, for_s=10.0)
    rows = list(compare(Plan.load("nano-tp1"), served.url, args, []))
    [verdict] = judged(rows)
    for figure, limit in GATES.items():
        assert abs(verdict[figure]) <= limit, (verdict, [row[figure] for row in rows])
