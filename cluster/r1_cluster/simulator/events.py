"""What happens to a fleet besides requests: gangs fail and come back, drain, and are added or taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

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
class Seen:
    """What a scaler goes by. ``gangs``: up or starting; ``pressure``: forecast KV over all KV."""

    now: float
    gangs: int
    queued: int
    pressure: float


class Scaler(Protocol):
    """Asked every ``every_s`` seconds how many gangs there should be, never above ``most``. A new one is up after
    ``start_s``; one too many drains for ``grace_s``."""

    @property
    def every_s(self) -> float: ...
    @property
    def start_s(self) -> float: ...
    @property
    def grace_s(self) -> float: ...
    @property
    def most(self) -> int: ...

    def gangs(self, seen: Seen) -> int: ...


@dataclass(frozen=True, slots=True)
class Threshold:
    """One gang more where requests wait or forecast KV passes ``up``, one less below ``down``."""

    least: int
    most: int
    up: float = 0.8
    down: float = 0.4
    every_s: float = 30.0
    start_s: float = 300.0
    grace_s: float = 60.0

    def gangs(self, seen: Seen) -> int:
        wanted = seen.gangs
        if seen.queued or seen.pressure > self.up:
            wanted += 1
        elif seen.pressure * seen.gangs < self.down * (seen.gangs - 1):
            wanted -= 1
        return max(self.least, min(self.most, wanted))


@dataclass(frozen=True, slots=True)
class Scenario:
    """``max_seconds``: of simulated time, after which what has not ended is left out."""

    failures: Sequence[Failure] = ()
    drains: Sequence[Drain] = ()
    scaler: Scaler | None = None
    slo: Slo = field(default_factory=Slo)
    max_seconds: float = 1e9
