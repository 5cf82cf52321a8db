"""What happens to a fleet besides requests: gangs fail and come back, drain, and are added or taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from r1_cluster.routing.scaling import ScalingRules
from r1_cluster.simulator.metrics import Slo


@dataclass(frozen=True, slots=True)
class Failure:
    """Gang number ``gang`` is lost at ``at`` with all that ran on it, and is back after ``restart_s`` seconds."""

    at: float
    gang: int
    restart_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Drain:
    """A gang takes nothing new from ``at`` on, hands over what still runs after ``grace_s`` and stops."""

    at: float
    gang: int
    grace_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """The fleet's own ``decide`` by ``rules``, asked every ``every_s`` seconds. A new gang is up after ``start_s``; one
    too many drains for ``grace_s``."""

    rules: ScalingRules
    every_s: float = 5.0
    start_s: float = 300.0
    grace_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """``max_seconds``: of simulated time, after which what has not ended is left out."""

    failures: Sequence[Failure] = ()
    drains: Sequence[Drain] = ()
    scaling: Autoscaling | None = None
    slo: Slo = field(default_factory=Slo)
    max_seconds: float = 1e9
