from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from r1_cluster.plan import Plan
from r1_serve.errors import StartupError
from r1_serve.launch.fleet import private_environment
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.workers.application import deployment_options
from r1_serve.workers.autoscaling import FRESH_S, Demands, GangScaling

PROBE = Path(__file__).parent / "probes" / "autoscaling.py"
RULES: dict[str, float] = {"min_gangs": 1, "max_gangs": 3, "up_after_s": 0, "down_after_s": 0}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def context(told: dict[str, float], *, current: int = 2, target: int = 2, age_s: float = 0.0) -> Any:
    point = [SimpleNamespace(timestamp=time.time() - age_s, value=0.0)]
    series = {
        name: {"old": [], "a": [SimpleNamespace(timestamp=time.time() - age_s, value=value)], "b": point}
        for name, value in told.items()
    }
    return SimpleNamespace(
        raw_metrics=series, current_num_replicas=current, target_num_replicas=target, policy_state={}
    )


def test_a_rank_sums_what_its_routers_ask_and_forgets_silent_ones() -> None:
    clock = Clock()
    demands = Demands(clock)
    assert demands.stats() == {}
    demands.told("a", pb.Demand(queued=2, wait_s=4, pressure=0.25, slo_burn=0.5))
    clock.now += FRESH_S - 1
    demands.told("b", pb.Demand(queued=3, wait_s=1, pressure=0.5, slo_burn=2.0))
    assert demands.stats() == {"queued": 5, "wait_s": 4, "pressure": 0.75, "slo_burn": 2.0}
    clock.now += 2
    assert demands.stats() == {"queued": 3, "wait_s": 1, "pressure": 0.5, "slo_burn": 2.0}


@pytest.mark.parametrize(("pressure", "replicas"), [(0.6, 2), (0.8, 4), (5.0, 4)])
def test_whole_gangs_are_added(pressure: float, replicas: int) -> None:
    assert GangScaling(2, RULES)(context({"pressure": pressure}))[0] == replicas


def test_a_gang_that_starts_or_stops_is_counted_where_it_will_be() -> None:
    policy = GangScaling(2, RULES)
    assert policy(context({"pressure": 0.9}, current=2, target=4))[0] == 4
    assert policy(context({"pressure": 0.6}, current=6, target=4))[0] == 4


def test_where_no_router_is_heard_nothing_changes() -> None:
    policy = GangScaling(2, RULES)
    assert policy(context({}, current=4, target=6))[0] == 6
    assert policy(context({"pressure": 0.0}, current=6, target=6, age_s=FRESH_S + 1))[0] == 6


def test_waiting_whether_it_lasts_is_remembered_in_serves_state() -> None:
    policy = GangScaling(2, RULES | {"up_after_s": 0.05})
    asked = context({"pressure": 0.9})
    replicas, asked.policy_state = policy(asked)
    assert replicas == 2
    assert asked.policy_state["more_since"] is not None
    asked.policy_state["more_since"] -= 1
    assert policy(asked)[0] == 4


def test_a_pool_scales_between_the_plans_gangs_and_the_most_allowed() -> None:
    plan = Plan.load("nano-dp2-ep2")
    options = deployment_options(plan, plan.pools[0], threads=1, max_gangs=3)
    assert "num_replicas" not in options
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 6)


def test_a_most_below_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from r1_serve.workers import application
    from ray import serve

    monkeypatch.setenv("R1_MAX_GANGS", "1")
    monkeypatch.setattr(serve, "start", lambda **_: None)
    plan = Plan.load("nano-tp1")
    two = plan.model_copy(update={"pools": (plan.pools[0].model_copy(update={"gangs": 2}),)})
    with pytest.raises(StartupError, match="R1_MAX_GANGS"):
        application.deploy(two)


@pytest.mark.timeout(180)
def test_serve_adds_a_gang_and_stops_one_politely(tmp_path: Path) -> None:
    """Ray's sockets want a short path, so its folder is not pytest's."""
    environment = os.environ | private_environment()
    environment["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
    environment["RAY_raylet_start_wait_time_s"] = "120"
    with tempfile.TemporaryDirectory(prefix="r1-") as folder:
        done = subprocess.run(
            [sys.executable, str(PROBE), str(tmp_path), folder],
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    (told,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # Ray writes there too
    assert told == {"seen": [2, 4, 2], "drained": 2}
