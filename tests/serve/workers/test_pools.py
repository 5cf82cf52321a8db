"""Pools of different sizes keep to their own nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from r1_cluster.plan import Plan, Pool
from r1_serve.launch.fleet import private_environment
from r1_serve.workers.application import deployment_options, pool_resource

PROBE = Path(__file__).parent / "probes" / "pools.py"


def test_a_plans_only_pool_asks_nodes_for_nothing_of_its_own() -> None:
    plan = Plan.load("nano-tp2-ep2")
    assert deployment_options(plan, plan.pools[0], threads=1)["placement_group_bundles"] == [
        {"CPU": 0.1, "GPU": 1.0},
        {"GPU": 1.0},
    ]


def test_each_bundle_of_one_pool_among_several_holds_the_pools_own_resource() -> None:
    plan = Plan.load("nano-tp1")
    pools = (Pool(name="gpu"), Pool(name="b"))
    several = plan.model_copy(update={"pools": pools})
    assert deployment_options(several, pools[0], threads=1)["placement_group_bundles"] == [
        {"CPU": 0.1, "GPU": 1.0, "r1-gpu-pool": 1.0}
    ]
    assert not pool_resource(pools[0]).endswith("gpu")  # KubeRay would take it for GPUs


@pytest.mark.timeout(120)
def test_ray_puts_each_pools_gangs_on_the_pools_nodes() -> None:
    """Ray's sockets want a short path, so its folder is not pytest's."""
    with tempfile.TemporaryDirectory(prefix="r1-", dir="/tmp") as folder:
        done = subprocess.run(
            [sys.executable, str(PROBE)],
            env=os.environ | private_environment() | {"RAY_raylet_start_wait_time_s": "120", "RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"small": ["small"], "big": ["big"]}
