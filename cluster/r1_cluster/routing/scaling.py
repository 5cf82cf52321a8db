"""How many gangs a fleet should have: a pure decision from what is asked of it. No clock, no I/O.

Thoughts grow for minutes, so what is followed is the *forecast* of KV, not the KV in use: a gang takes minutes to
start, and by the time the cache is full it is too late. Three things ask for another gang: the forecast, the queue, and
a service level that burns. Only all three together let one go, and only after a long while, one at a time: a gang that
leaves drains first, and what it still runs moves to those that stay.

The Ray Serve policy (r1_serve/workers/autoscaling.py) and a simulator call the same :func:`decide`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """``target_pressure``: the share of the fleet's KV that its forecast worst moment should take; the rest is for what
    arrives while a gang starts. A gang is taken away where those that stay would be below ``low_pressure``.

    ``up_after_s`` is short, for requests already wait; ``down_after_s`` outlasts a quiet quarter of an hour. Raises
    ValueError where the limits contradict each other.
    """

    min_gangs: int = 1
    max_gangs: int = 1
    target_pressure: float = 0.7
    low_pressure: float = 0.5
    max_wait_s: float = 15.0
    max_burn: float = 1.0
    up_after_s: float = 15.0
    down_after_s: float = 900.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_gangs <= self.max_gangs:
            raise ValueError(f"min_gangs is {self.min_gangs} and max_gangs {self.max_gangs}: 1 <= min <= max")
        if not 0 < self.low_pressure < self.target_pressure <= 1:
            raise ValueError(f"low_pressure {self.low_pressure} must be below target_pressure {self.target_pressure}")


@dataclass(frozen=True, slots=True)
class FleetDemand:
    """What all routers together ask of one model's fleet now.

    ``gangs`` serve, ``starting`` more have been asked for. ``pressure`` is forecast KV over the KV of the gangs that
    serve; ``queued`` requests wait in the routers, the last for ``wait_s``; ``slo_burn`` is how fast the error budget
    goes, 1 just in time.
    """

    gangs: int
    starting: int = 0
    queued: int = 0
    wait_s: float = 0.0
    pressure: float = 0.0
    slo_burn: float = 0.0


@dataclass(frozen=True, slots=True)
class ScalingState:
    """Since when more or fewer gangs have been wanted without a break."""

    more_since: float | None = None
    fewer_since: float | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many ``gangs`` there should be, those that start included, and why."""

    gangs: int
    reason: str


def decide(demand: FleetDemand, rules: ScalingRules, state: ScalingState, now: float) -> tuple[Scaling, ScalingState]:
    """The size to go to. ``now`` in seconds on any clock that does not go back."""
    current = demand.gangs + demand.starting
    if not rules.min_gangs <= current <= rules.max_gangs:
        bounded = min(max(current, rules.min_gangs), rules.max_gangs)
        return Scaling(bounded, f"{current} gangs are outside {rules.min_gangs} to {rules.max_gangs}"), ScalingState()
    if not demand.gangs:
        return Scaling(current, "the first gang starts"), ScalingState()
    wanted, why = _wanted(demand, rules)
    wanted = min(wanted, rules.max_gangs)
    if wanted > current:
        since = now if state.more_since is None else state.more_since
        if now - since >= rules.up_after_s:
            return Scaling(wanted, why), ScalingState()
        return Scaling(current, f"{why}; waiting whether it lasts"), ScalingState(more_since=since)
    if current > rules.min_gangs and not demand.starting and _idle(demand, rules):
        since = now if state.fewer_since is None else state.fewer_since
        if now - since >= rules.down_after_s:
            return Scaling(current - 1, f"pressure {demand.pressure:.2f} fits {current - 1} gangs"), ScalingState()
        return Scaling(current, "less would do; waiting whether it lasts"), ScalingState(fewer_since=since)
    return Scaling(current, "enough"), ScalingState()


def _wanted(demand: FleetDemand, rules: ScalingRules) -> tuple[int, str]:
    """What would do, and why; at most double: forecasts of a rush are rough."""
    needed = math.ceil(demand.pressure * demand.gangs / rules.target_pressure - 1e-9)
    if needed > demand.gangs:
        return min(needed, 2 * demand.gangs), f"forecast KV is {demand.pressure:.2f} of the fleet's"
    if demand.queued and demand.wait_s > rules.max_wait_s:
        return demand.gangs + 1, f"{demand.queued} requests wait, the last for {demand.wait_s:.0f} s"
    # An idle fleet can miss its level too (one long thought of two requests): more gangs would not help it.
    if demand.slo_burn > rules.max_burn and demand.pressure > rules.low_pressure:
        return demand.gangs + 1, f"the error budget burns {demand.slo_burn:.1f} times too fast"
    return demand.gangs, "enough"


def _idle(demand: FleetDemand, rules: ScalingRules) -> bool:
    """Whether one gang fewer would still be at ease."""
    if demand.gangs < 2 or demand.queued or demand.slo_burn > rules.max_burn:
        return False
    return demand.pressure * demand.gangs / (demand.gangs - 1) < rules.low_pressure
