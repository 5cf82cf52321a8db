"""Prefill pools beside decode pools, as a Plan has them: a prompt is computed on one gang and decoded on another.

The router picks the decode rank, as it would any: its KV and seats are what is scarce. This pool then takes the prompt
to the rank with the least to compute, cached beginnings left out, and sends its KV to the decode rank, one prompt after
another through the network ports of its tensor ranks. It is a plan's what-if: no part of the live router does this yet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from r1_cluster.perf.serving import transfer_seconds
from r1_cluster.plan import Plan, PlanError
from r1_cluster.simulator.agenda import Agenda, Kind
from r1_cluster.simulator.costs import Costs, Modelled, costs_of
from r1_cluster.simulator.gang import Gang
from r1_cluster.simulator.job import Job
from r1_cluster.simulator.rank import Limits, Rank
from r1_cluster.simulator.units import Unit


class PrefillGang(Gang):
    """Decodes nothing: ``through`` holds the jobs whose prompts the last step finished."""

    def __init__(self, name: str, ranks: int, costs: Costs, limits: Limits, clock: Callable[[], float]) -> None:
        super().__init__(name, ranks, costs, limits, clock)
        self.through: list[Job] = []

    def _start(self, job: Job, rank: Rank) -> None:
        rank.release(job, self.steps)
        self.through.append(job)


@dataclass(frozen=True, slots=True)
class Sent:
    """A job on its way to a rank of ``unit``, which was up ``since`` then."""

    job: Job
    unit: Unit
    rank: int
    since: float

    @property
    def lost(self) -> bool:
        return not self.unit.up or self.unit.up_since != self.since


class PrefillPool:
    """Raises PlanError, as ``costs_of``, and for a fleet of which no transfer time is known."""

    def __init__(self, plan: Plan, agenda: Agenda, limits: Limits, *, gangs: int | None = None) -> None:
        self._agenda = agenda
        self.gangs: list[PrefillGang] = []
        self.gpus = 0
        for pool in plan.pools:
            if pool.role != "prefill":
                continue
            costs = costs_of(plan, pool)
            if not isinstance(costs, Modelled):
                raise PlanError(f"plan {plan.name}: prefill and decode pools are simulated on GPUs, not on CPU ranks")
            self._engine = costs.engine
            for index in range(pool.gangs if gangs is None else gangs):
                name, ranks = f"{pool.name}-{index}", pool.layout.data_parallel_size
                self.gangs.append(PrefillGang(name, ranks, costs, limits, lambda: agenda.now))
                self.gpus += pool.layout.accelerators
        self.busy_seconds = 0.0
        self._handover = self._engine.overheads.handover
        self._ahead = {(g, r): 0 for g, gang in enumerate(self.gangs) for r in range(len(gang.ranks))}  # tokens
        self._port_free = dict.fromkeys(self._ahead, 0.0)
        self._due: dict[int, float] = {}
        self._for: dict[int, tuple[int, int, Sent]] = {}  # job number -> its prefill gang and rank, and where it goes
        self._moving: dict[int, Sent] = {}
        self._numbers = itertools.count()

    def submit(self, job: Job, unit: Unit, rank: int) -> None:
        """``job`` is to decode on ``rank`` of ``unit`` once its prompt is computed."""
        held = job.prompt + job.generated
        where = min(self._ahead, key=lambda at: self._ahead[at] - self.gangs[at[0]].ranks[at[1]].cached(job))
        which, mine = where
        self._ahead[where] += held
        self._for[job.number] = (which, mine, Sent(job, unit, rank, unit.up_since))
        self.gangs[which].submit(job, mine, self._agenda.now)
        self._watch(which)

    def advance(self, which: int, at: float) -> None:
        """The steps of a prefill gang that were to end ``at`` are done: KV goes on its way."""
        if self._due.get(which) != at:
            return
        del self._due[which]
        gang = self.gangs[which]
        self.busy_seconds += gang.step_s
        gang.advance()
        for job in gang.through:
            gang_number, rank, sent = self._for.pop(job.number)
            port, tokens = (gang_number, rank), job.prompt + job.generated
            self._ahead[port] -= tokens
            begins = max(self._agenda.now, self._port_free[port])
            self._port_free[port] = begins + transfer_seconds(self._engine, tokens)
            number = next(self._numbers)
            self._moving[number] = sent
            self._agenda.push(self._port_free[port] + self._handover, Kind.KV, number)
        gang.through.clear()
        self._watch(which)

    def arrived(self, number: int) -> Sent:
        """The KV of a prompt is where it is decoded."""
        sent = self._moving.pop(number)
        sent.job.delivered = not sent.lost
        return sent

    def _watch(self, which: int) -> None:
        due = self.gangs[which].due
        if due != self._due.get(which, math.inf):
            if due == math.inf:
                del self._due[which]
            else:
                self._due[which] = due
                self._agenda.push(due, Kind.PREFILL, which)
