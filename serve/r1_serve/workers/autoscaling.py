"""Ray Serve sizes a pool by r1_cluster's decision, whole gangs at a time.

The way of the numbers: each router tells every rank what is asked of the fleet (router/demand.py), a rank sums its
routers' (:class:`Demands`) and hands that to Serve, whose controller calls :class:`GangScaling` with it. A gang that is
let go is stopped politely: its ranks drain, and hand over what still runs (rank.py).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from r1_cluster.plan import Pool
from r1_cluster.routing.scaling import FleetDemand, ScalingRules, ScalingState, decide

from r1_serve.protos import fleet_pb2 as pb

FRESH_S = 30.0  # what is older says nothing: Serve pushes every few seconds


class Demands:
    """What the routers last told one rank. ``clock`` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[object, tuple[float, pb.Demand]] = {}

    def told(self, router: object, demand: pb.Demand) -> None:
        self._last[router] = (self._clock(), demand)

    def stats(self) -> dict[str, float]:
        """All routers' together, for Serve. Empty where none has said anything lately: then nothing is known."""
        old = self._clock() - FRESH_S
        self._last = {router: told for router, told in self._last.items() if told[0] > old}
        demands = [demand for _, demand in self._last.values()]
        if not demands:
            return {}
        return {
            "queued": float(sum(demand.queued for demand in demands)),
            "wait_s": max(demand.wait_s for demand in demands),
            "pressure": sum(demand.pressure for demand in demands),
            "slo_burn": max(demand.slo_burn for demand in demands),
        }


class GangScaling:
    """Serve's policy class: called in its controller, many times a minute. Keeps no state of its own: Serve does."""

    def __init__(self, gang_size: int, rules: dict[str, float]) -> None:
        self._gang_size = gang_size
        self._rules = ScalingRules(**rules)  # type: ignore[arg-type]

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Serve's AutoscalingContext to the number of replicas, and the state for the next call."""
        now = time.time()
        told = latest(context.raw_metrics or {}, now)
        if not told:
            return context.target_num_replicas, {}  # no router is heard: change nothing
        target = context.target_num_replicas // self._gang_size
        gangs = min(target, context.current_num_replicas // self._gang_size)
        demand = FleetDemand(gangs=gangs, starting=target - gangs, **told)  # type: ignore[arg-type]
        since = context.policy_state or {}
        state = ScalingState(more_since=since.get("more_since"), fewer_since=since.get("fewer_since"))
        scaling, state = decide(demand, self._rules, state, now)
        return scaling.gangs * self._gang_size, dataclasses.asdict(state)


def latest(metrics: dict[str, dict[Any, Any]], now: float) -> dict[str, float]:
    """The highest fresh value of each number over the replicas: all were told the same, some a moment earlier."""
    found: dict[str, float] = {}
    for name in ("queued", "wait_s", "pressure", "slo_burn"):
        points = [series[-1] for series in metrics.get(name, {}).values() if series]
        values = [point.value for point in points if point.timestamp > now - FRESH_S]
        if values:
            found[name] = max(values)
    return found


def autoscaling(pool: Pool, max_gangs: int, **rules: float) -> dict[str, Any]:
    """Serve's ``autoscaling_config``: between the plan's gangs and ``max_gangs``. Delays are the decision's own."""
    size = pool.layout.data_parallel_size
    limits = {"min_gangs": pool.gangs, "max_gangs": max_gangs}
    return {
        "min_replicas": pool.gangs * size,
        "initial_replicas": pool.gangs * size,
        "max_replicas": max_gangs * size,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "policy": {
            "policy_function": "r1_serve.workers.autoscaling:GangScaling",
            "policy_kwargs": {"gang_size": size, "rules": limits | rules},
        },
    }
