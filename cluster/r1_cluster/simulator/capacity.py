"""How much load a fleet takes before its service level breaks, and what thinking budgets change about that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from r1_cluster.plan import Plan
from r1_cluster.simulator.costs import Linear
from r1_cluster.simulator.events import Scenario
from r1_cluster.simulator.metrics import Slo
from r1_cluster.simulator.report import Report
from r1_cluster.simulator.simulation import EVERY, Simulation
from r1_cluster.workload import Closed, Workload

SHARES = (0.25, 0.5, 0.7, 0.85, 1.0)  # of saturation, for the curve
HALVINGS = 4  # between the last rate that holds and the first that breaks
FILLS = 5
JUDGED = (0.4, 0.85)  # of the requests: those before fill the fleet, those after see it run dry
HOLDS = 0.95  # the share of requests that keep the service level

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Point:
    """One load. Times are 95th percentiles in seconds, throughput in output tokens/s a GPU."""

    rate: float
    good_share: float
    throughput_per_gpu: float
    ttft: float | None
    ttfa: float | None
    tpot: float | None
    preemptions: int
    thoughts_cut: float

    @property
    def holds(self) -> bool:
        return self.good_share >= HOLDS

    @classmethod
    def of(cls, rate: float, report: Report) -> Point:
        told = report.as_dict(0.0)
        return cls(
            rate=round(rate, 6),
            good_share=told["good_share"],
            throughput_per_gpu=told["throughput_per_gpu"],
            ttft=told["ttft"]["p95"],
            ttfa=told["ttfa"]["p95"],
            tpot=told["tpot"]["p95"],
            preemptions=told["preemptions"],
            thoughts_cut=told["thoughts_cut"],
        )


@dataclass(frozen=True, slots=True)
class Capacity:
    """A plan under a budget. ``points`` in the order of their rates; ``rate``: the most at which the service level
    holds, 0 where it does at none. ``gpu_seconds``: of an answer at that rate."""

    plan: Plan
    budget: int | None
    gpus: int
    points: tuple[Point, ...]

    @property
    def best(self) -> Point | None:
        return max((p for p in self.points if p.holds), key=lambda p: p.rate, default=None)

    @property
    def rate(self) -> float:
        return self.best.rate if self.best else 0.0

    @property
    def gpu_seconds(self) -> float | None:
        return self.gpus / self.rate if self.rate else None

    def as_dict(self, price: float | None = None) -> dict[str, Any]:
        """``price``: of a GPU hour, in whatever currency."""
        seconds = self.gpu_seconds
        return {
            "plan": self.plan.name,
            "plan_hash": self.plan.hash,
            "gpus": self.gpus,
            "accelerator": self.plan.fleet.accelerator,
            "budget": self.budget,
            "max_requests_per_second": self.rate,
            "gpu_seconds_per_answer": None if seconds is None else round(seconds, 4),
            "cost_per_answer": None if seconds is None or price is None else round(seconds / 3600 * price, 8),
            "at_max": asdict(self.best) if self.best else None,
            "points": [asdict(point) for point in self.points],
        }


def capacity(
    plan: Plan,
    workload: Workload,
    *,
    slo: Slo,
    budget: int | None = None,
    requests: int | None = None,
    seed: int = 0,
    profile: Linear | None = None,
    told: Told = lambda _: None,
) -> Capacity:
    """Saturate the fleet, look at shares of what it did then, and halve in on where the service level breaks.

    ``requests`` at each load: by default ``FILLS`` times what the fleet holds at once, of which those are judged that
    meet a full fleet. Close to saturation queues grow for longer: the last percent of a rate is optimistic.
    """
    asked = workload.budgeted(budget)
    closed = asked.model_copy(update={"arrivals": Closed()})
    if requests is None:
        requests = max(1000, math.ceil(FILLS * Simulation(plan, closed, requests=1, profile=profile).width()))
    count = requests

    def run(load: Workload) -> Report:
        judged = range(*(int(share * count) for share in JUDGED)) if load is not closed else EVERY
        scenario = Scenario(slo=slo)
        return Simulation(
            plan, load, requests=count, seed=seed, scenario=scenario, profile=profile, judged=judged
        ).run()

    saturated = run(closed)
    # By tokens over the steady window, not by requests over the whole run: its emptying would count.
    most = saturated.throughput / (saturated.metrics.output_tokens / max(1, saturated.metrics.ended))
    points: list[Point] = []

    def look(rate: float) -> Point:
        told(f"{plan.name}, budget {budget or 'none'}: {rate:.3g} requests/s")
        point = Point.of(rate, run(asked.at_rate(rate)))
        points.append(point)
        return point

    low, high = 0.0, most
    for share in SHARES:
        point = look(share * most)
        if not point.holds:
            high = point.rate
            break
        low = point.rate
    else:
        high = 0.0
    for _ in range(HALVINGS if high else 0):
        middle = (low + high) / 2
        if look(middle).holds:
            low = middle
        else:
            high = middle
    return Capacity(plan, budget, saturated.gpus, tuple(sorted(points, key=lambda p: p.rate)))
