"""The simulator beside the fleet it was calibrated on."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from r1_bench.calibration import GATES, compare
from r1_bench.fleet import Fleet
from r1_cluster.plan import Plan
from r1_cluster.simulator.options import load_profile

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("served", ["nano-tp1"], indirect=True)
def test_what_a_calibrated_simulation_says_is_what_the_fleet_does(served: Fleet, tmp_path: Path) -> None:
    out = tmp_path / "profile.yaml"
    command = [sys.executable, "-m", "r1_serve.cli", "calibrate", "--router", served.url, "--most", "32"]
    subprocess.run([*command, "--out", str(out)], check=True, timeout=300)
    args = argparse.Namespace(burst=40, loads=[0.5], seeds=[0, 1, 2], for_s=10.0)
    rows = list(compare(Plan.load("nano-tp1"), load_profile(out), served.url, args))
    # What else the machine does reaches a replay of ten seconds: the median of three. TPOT's own gate is not reached
    # yet (docs/simulation.md): this tells a simulation of the right order from a wrong one.
    for figure, limit in {"throughput": GATES["throughput"], "tpot_p95": 0.6}.items():
        errors = sorted(abs(row[figure]["error"]) for row in rows)
        assert errors[1] <= limit, (figure, rows)
