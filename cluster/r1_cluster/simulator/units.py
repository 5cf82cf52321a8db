"""The gangs of a simulated fleet as the router sees them: rows of its table, up or gone, draining or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from r1_cluster.perf.batch import Speculation
from r1_cluster.plan import Plan
from r1_cluster.routing import RankView
from r1_cluster.routing.dispatcher import Dispatcher
from r1_cluster.simulator.agenda import Agenda, Kind
from r1_cluster.simulator.costs import Linear, costs_of
from r1_cluster.simulator.gang import Gang
from r1_cluster.simulator.job import Job
from r1_cluster.simulator.rank import Limits


@dataclass(slots=True, eq=False)
class Unit:
    """A gang and its place in the router's table. ``begins``: it is there from the start."""

    number: int
    gang: Gang
    gpus: int
    begins: bool = True
    rows: list[int] = field(default_factory=list)
    up: bool = False
    up_since: float = 0.0
    draining: bool = False


def limits_of(plan: Plan) -> Limits:
    engine = plan.engine
    return Limits(engine.max_num_seqs, engine.max_num_batched_tokens, engine.enable_prefix_caching)


def units_of(
    plan: Plan,
    agenda: Agenda,
    *,
    gangs: int | None = None,
    most: int = 0,
    profile: Linear | None = None,
    speculation: Speculation | None = None,
) -> list[Unit]:
    """``gangs`` of each pool that decodes, by default the plan's number, and as many more as autoscaling may add up to
    ``most``. Raises PlanError."""
    limits = limits_of(plan)
    units: list[Unit] = []
    for pool in plan.pools:
        if pool.role == "prefill":
            continue
        costs = costs_of(plan, pool, profile, speculation=speculation)
        count = pool.gangs if gangs is None else gangs
        for index in range(max(count, most)):
            gang = Gang(f"{pool.name}-{index}", pool.layout.data_parallel_size, costs, limits, lambda: agenda.now)
            units.append(Unit(len(units), gang, pool.layout.accelerators, begins=index < count))
    return units


class Units:
    """Keeps the router's table and the agenda up to date with the gangs."""

    def __init__(
        self, units: Sequence[Unit], dispatcher: Dispatcher, agenda: Agenda, *, max_waiting_requests: int
    ) -> None:
        self.all = units
        self.by_worker: dict[str, tuple[Unit, int]] = {}
        self._dispatcher, self._agenda, self._max_waiting = dispatcher, agenda, max_waiting_requests
        self._due: dict[int, float] = {}  # unit -> the time its event on the agenda is for
        self._gpu_seconds = 0.0

    def attach(self, unit: Unit) -> None:
        if unit.up:
            return
        unit.up, unit.up_since, unit.draining, unit.rows = True, self._agenda.now, False, []
        for rank in range(len(unit.gang.ranks)):
            view = self._view(unit, rank)
            self.by_worker[view.worker_id] = (unit, rank)
            unit.rows.append(self._dispatcher.table.put(view))

    def submit(self, job: Job, unit: Unit, rank: int) -> None:
        unit.gang.submit(job, rank, self._agenda.now)
        self._watch(unit)

    def is_due(self, which: int, at: float) -> bool:
        """Whether an event of a gang's steps still holds: they may have been cut short since."""
        return self._due.get(which) == at

    def advance(self, which: int) -> list[Job]:
        """The steps of a gang that were under way are done. Returns the jobs that ended."""
        unit = self.all[which]
        del self._due[which]
        ended = unit.gang.advance()
        self._watch(unit)
        return ended

    def report(self, which: int) -> None:
        """Tell the router what changed on a gang, as a frame of each rank would."""
        unit = self.all[which]
        gang, table = unit.gang, self._dispatcher.table
        tokens = gang.costs.kv_tokens
        for index in sorted(gang.touched):
            rank = gang.ranks[index]
            usage = min(1.0, rank.used(gang.steps) / tokens)
            table.report(unit.rows[index], load=rank.load, kv_usage=usage, step_time_s=gang.step_s)
        gang.touched.clear()

    def lose(self, which: int) -> list[Job] | None:
        """A gang is gone. Returns what it had, by number; None: it was not there."""
        unit = self.all[which]
        if not unit.up:
            return None
        self._gpu_seconds += unit.gpus * (self._agenda.now - unit.up_since)
        lost = unit.gang.fail()
        self._watch(unit)
        unit.up = unit.draining = False
        for rank in range(len(unit.gang.ranks)):
            self._dispatcher.left(f"{unit.gang.name}-{rank}")
        return sorted(lost, key=lambda job: job.number)

    def drain(self, which: int, grace_s: float) -> None:
        """It takes nothing new, and stops after ``grace_s``."""
        unit = self.all[which]
        if not unit.up or unit.draining:
            return
        unit.draining = True
        for rank in range(len(unit.gang.ranks)):
            self._dispatcher.table.put(self._view(unit, rank))
        self._agenda.push(self._agenda.now + grace_s, Kind.STOP, which)

    @property
    def any_up(self) -> bool:
        return any(unit.up for unit in self.all)

    def kv_used(self) -> float:
        """The share of the fleet's KV in use."""
        used = total = 0
        for unit in self.all:
            if unit.up:
                used += sum(rank.used(unit.gang.steps) for rank in unit.gang.ranks)
                total += unit.gang.costs.kv_tokens * len(unit.gang.ranks)
        return used / total if total else 0.0

    def tokens(self) -> int:
        """Generated so far."""
        gangs = (unit.gang for unit in self.all)
        return sum(gang.tokens + gang.running * (gang.steps_now() - gang.steps) for gang in gangs)

    def gpu_seconds(self) -> float:
        """Of all gangs while they were up."""
        now = self._agenda.now
        return self._gpu_seconds + sum(unit.gpus * (now - unit.up_since) for unit in self.all if unit.up)

    def _watch(self, unit: Unit) -> None:
        """Have an event at the gang's next change. One that moved earlier leaves a stale one behind."""
        which, due = unit.number, unit.gang.due
        if due != self._due.get(which, math.inf):
            if due == math.inf:
                del self._due[which]
            else:
                self._due[which] = due
                self._agenda.push(due, Kind.STEP, which)

    def _view(self, unit: Unit, rank: int) -> RankView:
        gang = unit.gang
        return RankView(
            worker_id=f"{gang.name}-{rank}",
            max_num_seqs=gang.limits.max_num_seqs,
            max_waiting_requests=self._max_waiting,
            running=gang.ranks[rank].load,
            kv_tokens=gang.costs.kv_tokens,
            kv_usage=min(1.0, gang.ranks[rank].used(gang.steps) / gang.costs.kv_tokens),
            step_time_s=gang.step_s,
            draining=unit.draining,
            gang_id=gang.name,
        )
