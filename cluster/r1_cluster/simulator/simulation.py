"""The event loop: requests through the router's own Dispatcher onto simulated gangs. Deterministic by seed.

Only changes are events: an arrival, the end of a gang's steps under way, and what a Scenario brings.
"""

from __future__ import annotations

import gc
import heapq
import math
from collections.abc import Callable

from r1_cluster.perf.batch import Speculation
from r1_cluster.plan import Plan, PlanError
from r1_cluster.routing import policy
from r1_cluster.routing.admission import Rules
from r1_cluster.routing.dispatcher import Dispatcher
from r1_cluster.routing.policy import Policy
from r1_cluster.routing.prefix import PrefixIndex
from r1_cluster.routing.tenants import Tenant
from r1_cluster.simulator.agenda import Agenda, Kind
from r1_cluster.simulator.costs import Linear
from r1_cluster.simulator.desk import PREFIX_BLOCK, Desk
from r1_cluster.simulator.events import Scenario
from r1_cluster.simulator.happenings import Happenings
from r1_cluster.simulator.job import Job
from r1_cluster.simulator.metrics import Metrics
from r1_cluster.simulator.pools import PrefillPool
from r1_cluster.simulator.report import Report
from r1_cluster.simulator.stream import jobs_of
from r1_cluster.simulator.units import Units, limits_of, units_of
from r1_cluster.workload import Closed, Workload

WINDOW_FROM = 0.2  # the share of requests after which the measured window begins

REFRESHED_AS_LIVE = 32  # ranks, up to which forecasts are by default as fresh as live

EVERY = range(1 << 62)  # requests

Progress = Callable[[int, float], None]


class Simulation:
    """``requests`` of ``workload`` on ``plan``. ``gangs``: of each pool, instead of the plan's own number.

    ``refresh_s``: how old the router's forecasts may get; live a second, here by default 10 s in larger fleets.
    ``judged``: numbers of the requests whose times count. ``policy_name``: or a YAML file; ``chooser`` goes before it.
    ``speculation``: drafts a step and their acceptance, the same for all requests; by default the plan's. Raises
    PlanError, PolicyError.
    """

    def __init__(
        self,
        plan: Plan,
        workload: Workload,
        *,
        requests: int,
        seed: int = 0,
        gangs: int | None = None,
        scenario: Scenario | None = None,
        profile: Linear | None = None,
        policy_name: str = "thinking_aware",
        chooser: Policy | None = None,
        refresh_s: float | None = None,
        tenants: dict[str, Tenant] | None = None,
        judged: range = EVERY,
        speculation: Speculation | None = None,
    ) -> None:
        if plan.separate and (profile or (scenario and scenario.scaling)):
            raise PlanError(
                f"plan {plan.name}: prefill and decode pools are simulated neither with a profile nor with autoscaling"
            )
        self.plan, self.workload, self.requests, self.seed = plan, workload, requests, seed
        self.scenario = scenario or Scenario()
        self.metrics = Metrics(self.scenario.slo, every=max(1, requests // 256), judged=judged)
        self._window = min(requests - 1, max(judged.start, int(requests * WINDOW_FROM)))
        self._agenda = Agenda()
        most = self.scenario.scaling.rules.max_gangs if self.scenario.scaling else 0
        units = units_of(plan, self._agenda, gangs=gangs, most=most, profile=profile, speculation=speculation)
        self._prefill = PrefillPool(plan, self._agenda, limits_of(plan), gangs=gangs) if plan.separate else None
        ranks = sum(len(unit.gang.ranks) for unit in units)
        self.refresh_s = refresh_s or (1.0 if ranks <= REFRESHED_AS_LIVE else 10.0)
        limits = plan.limits
        rules = Rules(max_queued=limits.max_queued_requests, max_wait_s=limits.max_queue_seconds)
        if isinstance(workload.arrivals, Closed):  # its clients wait as long as it takes
            rules = Rules(max_queued=1 << 30, max_wait_s=math.inf, patience_s=rules.patience_s)
        largest = max(unit.gang.costs.kv_tokens for unit in units)
        self.dispatcher = Dispatcher(
            chooser or policy(policy_name),
            rules=rules,
            budgets=limits.thinking,
            prefix=PrefixIndex(PREFIX_BLOCK, max_blocks=max(1, largest // PREFIX_BLOCK)),
            refresh_s=self.refresh_s,
            remembered=0,  # nobody asks why
        )
        waiting = limits.max_waiting_requests
        self._units = Units(units, self.dispatcher, self._agenda, max_waiting_requests=waiting)
        self._desk = Desk(
            plan, workload, tenants or {}, self.dispatcher, self._units, self._agenda, self.metrics, self._prefill
        )
        self._happenings = Happenings(self.scenario, self._units, self._desk, self._agenda, self._prefill)
        self._tokens_at_window: tuple[float, int] | None = None
        self._tokens_at_last: tuple[float, int] | None = None

    def run(self, progress: Progress = lambda ended, now: None) -> Report:
        """Until all requests have ended or were refused. ``progress(done, now)`` is called a thousand times or so."""
        collects = gc.isenabled()
        gc.disable()  # nothing here is cyclic, and looking for it takes a tenth of the time
        try:
            return self._run(progress)
        finally:
            if collects:
                gc.enable()

    def _run(self, progress: Progress) -> Report:
        self._happenings.begin()
        stream = jobs_of(self.workload, self.requests, self.seed)
        upcoming = next(stream, None)
        told, step, width = 0, max(1, self.requests // 1000), self.width()
        agenda, desk, metrics, units = self._agenda, self._desk, self.metrics, self._units
        events, jobs, most, stepped = agenda.events, desk.jobs, self.scenario.max_seconds, int(Kind.STEP)
        while True:
            if upcoming is not None and len(jobs) < width and (not events or upcoming.at <= events[0][0]):
                # A closed loop's are due as soon as one ends.
                agenda.now = upcoming.at = max(agenda.now, upcoming.at)
                self._arrive(upcoming)
                upcoming = next(stream, None)
                if upcoming is None:
                    self._tokens_at_last = (agenda.now, self._units.tokens())
            elif events:
                at, _, kind, which = heapq.heappop(events)
                if at > most:
                    break
                if kind != stepped:
                    agenda.now = at
                    self._happenings.handle(kind, which)
                elif units.is_due(which, at):
                    agenda.now = at
                    self._step(which)
                if upcoming is None and not desk.busy:
                    break
            else:
                break
            if metrics.ended >= told + step:
                told = metrics.ended
                progress(metrics.done, agenda.now)
        return self._report()

    def width(self) -> float:
        """How many requests are in flight at most. A closed loop's clients: as said, or a tenth more than the fleet's
        seats and cache hold at once."""
        arrivals = self.workload.arrivals
        if not isinstance(arrivals, Closed):
            return math.inf
        if arrivals.concurrency is not None:
            return arrivals.concurrency
        held = self.workload.prompt_mean() + self.workload.output_mean() / 2
        gangs = [unit.gang for unit in self._units.all if unit.begins]
        seats = sum(len(g.ranks) * min(g.limits.max_num_seqs, g.costs.kv_tokens / held) for g in gangs)
        return max(1, math.ceil(1.1 * seats))

    def _arrive(self, job: Job) -> None:
        if job.number == self._window:
            self._tokens_at_window = (self._agenda.now, self._units.tokens())
        self._desk.arrive(job)

    def _step(self, which: int) -> None:
        units, desk, metrics = self._units, self._desk, self.metrics
        ended = units.advance(which)
        for job in ended:
            desk.end(job)
        units.report(which)
        if ended:
            if metrics.wants_sample():
                queued = desk.queued
                metrics.sample(self._agenda.now, units.kv_used(), len(desk.jobs) - queued, queued)
            if desk.queued or desk.orphans:
                desk.pump()

    def _report(self) -> Report:
        window = None
        if self._tokens_at_window and self._tokens_at_last:
            (t0, n0), (t1, n1) = self._tokens_at_window, self._tokens_at_last
            window = (n1 - n0, t1 - t0)
        gangs, prefill = [unit.gang for unit in self._units.all], self._prefill
        now, more = self._agenda.now, prefill.gpus if prefill else 0
        prefilling = [*gangs, *(prefill.gangs if prefill else ())]
        return Report(
            plan=self.plan,
            workload=self.workload,
            seed=self.seed,
            requests=self.requests,
            gpus=sum(unit.gpus for unit in self._units.all if unit.begins) + more,
            gpu_seconds=self._units.gpu_seconds() + more * now,
            simulated_seconds=now,
            metrics=self.metrics,
            window=window,
            preemptions=sum(gang.preemptions for gang in gangs),
            prompt_tokens=sum(gang.prompt_tokens for gang in prefilling),
            cached_tokens=sum(gang.cached_tokens for gang in prefilling),
            prefill_busy=prefill.busy_seconds / (now * len(prefill.gangs)) if prefill and now else None,
        )
