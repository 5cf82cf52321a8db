"""A real Ray Serve gang deployment under our policy, in a process of its own: up by a gang, down by a gang, drained.

Prints one JSON object: the replicas seen on the way, and how many were stopped politely.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from r1_cluster.plan import Plan
from r1_serve.workers.autoscaling import autoscaling
from ray import serve
from ray.serve.config import GangSchedulingConfig, ProxyLocation

TIMEOUT_S = 60.0
FOLDER = Path(sys.argv[1])


class Rank:
    """Passes on what the file says is asked of the fleet; notes when it is stopped as a rank would be."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        told: dict[str, float] = json.loads((self._folder / "demand.json").read_text())
        return told

    async def __del__(self) -> None:
        (self._folder / f"drained-{uuid.uuid4().hex}").touch()


def ask(pressure: float) -> None:
    part = FOLDER / "part.json"
    part.write_text(json.dumps({"queued": 0.0, "wait_s": 0.0, "pressure": pressure, "slo_burn": 0.0}))
    part.replace(FOLDER / "demand.json")


def until(replicas: int) -> int:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        states: dict[Any, int] = serve.status().applications["scaled"].deployments["rank"].replica_states
        if {str(getattr(state, "value", state)): n for state, n in states.items()} == {"RUNNING": replicas}:
            return replicas
        time.sleep(0.2)
    raise TimeoutError(f"not {replicas} replicas: {states}")


def main() -> None:
    pool = Plan.load("nano-dp2-ep2").pools[0]
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])
    serve.start(proxy_location=ProxyLocation.Disabled)
    seen = []
    ask(0.6)
    options = autoscaling(pool, 2, up_after_s=1, down_after_s=2)
    deployment = serve.deployment(
        name="rank",
        autoscaling_config=options | {"look_back_period_s": 2},
        gang_scheduling_config=GangSchedulingConfig(gang_size=pool.layout.data_parallel_size),
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=5,
    )(Rank)
    serve.run(deployment.bind(str(FOLDER)), name="scaled", route_prefix=None)
    seen.append(until(2))
    ask(1.3)
    seen.append(until(4))
    ask(0.05)
    seen.append(until(2))
    print(json.dumps({"seen": seen, "drained": len(list(FOLDER.glob("drained-*")))}))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
