"""The event loop: requests through the router's own Dispatcher onto simulated gangs. Deterministic by seed.

Only changes are events: an arrival, the end of a gang's steps under way, and what a Scenario brings.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from r1_cluster.plan import Plan, PlanError
from r1_cluster.routing import RankView, policy
from r1_cluster.routing.admission import Arrival, Refusal, Rules
from r1_cluster.routing.budget import Asked
from r1_cluster.routing.dispatcher import SHORTLIST, Dispatcher, Start
from r1_cluster.routing.lengths import Outcome
from r1_cluster.routing.prefix import PrefixIndex
from r1_cluster.routing.scaling import FleetDemand, ScalingState, decide
from r1_cluster.routing.tenants import Tenant
from r1_cluster.simulator.costs import Linear, costs_of
from r1_cluster.simulator.events import Autoscaling, Scenario
from r1_cluster.simulator.gang import Gang, Limits
from r1_cluster.simulator.job import Job
from r1_cluster.simulator.metrics import Metrics
from r1_cluster.simulator.report import Report
from r1_cluster.workload import Closed, Workload

LOOK_S = 0.1  # between looks for room while requests wait, as the router's desk has it
PREFIX_BLOCK = 512  # tokens of the router's prefix blocks here: coarser than live, for speed
DRAIN_FROM = 0.2  # the share of requests after which the measured window begins

Progress = Callable[[int, float], None]

_STEP, _LOOK, _FAIL, _DRAIN, _STOP, _UP, _SCALE = range(7)


@dataclass(slots=True, eq=False)
class _Unit:
    """A gang and its place in the router's table."""

    number: int
    gang: Gang
    gpus: int
    rows: list[int] = field(default_factory=list)
    up: bool = False
    up_since: float = 0.0
    draining: bool = False


class Simulation:
    """``requests`` of ``workload`` on ``plan``. ``gangs``: of each pool, instead of the plan's own number.

    ``refresh_s``: how old the router's forecasts may get; live a second, here by default 5 s in larger fleets.
    ``policy_name``: or a YAML file. Raises PlanError, PolicyError.
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
        refresh_s: float | None = None,
        tenants: dict[str, Tenant] | None = None,
    ) -> None:
        if any(pool.role != "unified" for pool in plan.pools):
            raise PlanError(f"plan {plan.name}: separate prefill and decode pools are not simulated yet")
        self.plan, self.workload, self.requests, self.seed = plan, workload, requests, seed
        self.scenario = scenario or Scenario()
        self.metrics = Metrics(self.scenario.slo, every=max(1, requests // 256))
        self.now = 0.0
        limits = plan.limits
        self._window = min(requests - 1, int(requests * DRAIN_FROM))
        closed = isinstance(workload.arrivals, Closed)
        rules = Rules(max_queued=limits.max_queued_requests, max_wait_s=limits.max_queue_seconds)
        if closed:  # its clients wait as long as it takes
            rules = Rules(max_queued=1 << 30, max_wait_s=math.inf, patience_s=rules.patience_s)
        largest = 0
        self._units: list[_Unit] = []
        self._begins_with: list[_Unit] = []
        self._by_worker: dict[str, tuple[_Unit, int]] = {}
        self._coming: set[int] = set()  # gangs that are starting
        most = self.scenario.scaling.rules.max_gangs if self.scenario.scaling else 0
        self._scaling = ScalingState()
        engine = Limits(plan.engine.max_num_seqs, plan.engine.max_num_batched_tokens, plan.engine.enable_prefix_caching)
        for pool in plan.pools:
            costs = costs_of(plan, pool, profile)
            largest = max(largest, costs.kv_tokens)
            count = pool.gangs if gangs is None else gangs
            for index in range(max(count, most)):
                ranks = pool.layout.data_parallel_size
                gang = Gang(f"{pool.name}-{index}", ranks, costs, engine, lambda: self.now)
                self._units.append(_Unit(len(self._units), gang, pool.layout.accelerators))
            self._begins_with += self._units[-max(count, most) :][:count]
        named = [f.gang for f in self.scenario.failures] + [d.gang for d in self.scenario.drains]
        if named and max(named) >= len(self._units):
            raise PlanError(f"gang {max(named)} cannot fail or drain: the fleet has {len(self._units)}, from 0")
        ranks = sum(len(unit.gang.ranks) for unit in self._units)
        self.refresh_s = refresh_s or (1.0 if ranks <= SHORTLIST else 5.0)
        self.dispatcher = Dispatcher(
            policy(policy_name),
            rules=rules,
            budgets=limits.thinking,
            prefix=PrefixIndex(PREFIX_BLOCK, max_blocks=max(1, largest // PREFIX_BLOCK)),
            refresh_s=self.refresh_s,
        )
        tenants = tenants or {}
        self._tenants = [tenants.get(c.tenant) or Tenant(name=c.tenant) for c in workload.classes]
        self._asked = [Asked(c.budget) if c.budget is not None else Asked() for c in workload.classes]
        self._max_tokens = [min(c.max_tokens, plan.engine.max_model_len - 1) for c in workload.classes]
        self._jobs: dict[int, Job] = {}  # by id of its ticket, as long as that lives
        self._orphans: deque[Job] = deque()
        self._events: list[tuple[float, int, int, int]] = []  # when, number, kind, which
        self._numbers = itertools.count()
        self._picks = itertools.count(1)
        self._due: dict[int, float] = {}  # unit -> the time its event in the heap is for
        self._chains: dict[tuple[int, int], tuple[bytes, ...]] = {}
        self._gpu_seconds = 0.0
        self._lag = self._units[0].gang.costs.first_token_s
        self._look_at = math.inf
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
        for unit in self._begins_with:
            self._attach(unit)
        self._schedule()
        stream = self._stream()
        upcoming = next(stream, None)
        told, step, width = 0, max(1, self.requests // 1000), self.width()
        metrics, events, jobs = self.metrics, self._events, self._jobs
        while True:
            if upcoming is not None and len(jobs) < width and (not events or upcoming.at <= events[0][0]):
                self.now = upcoming.at = max(self.now, upcoming.at)  # a closed loop's are due as soon as one ends
                self._arrive(upcoming)
                upcoming = next(stream, None)
                if upcoming is None:
                    self._tokens_at_last = (self.now, self._tokens())
            elif events:
                at, _, kind, which = heapq.heappop(events)
                if at > self.scenario.max_seconds:
                    break
                if kind != _STEP or self._due.get(which) == at:
                    self.now = at
                    self._handle(kind, which)
                if upcoming is None and not self._jobs and not self._orphans:
                    break
            else:
                break
            done = metrics.ended + sum(metrics.refused.values())
            if done >= told + step:
                told = done
                progress(done, self.now)
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
        gangs = [unit.gang for unit in self._begins_with]
        seats = sum(len(g.ranks) * min(g.limits.max_num_seqs, g.costs.kv_tokens / held) for g in gangs)
        return max(1, math.ceil(1.1 * seats))

    # Requests.

    def _stream(self) -> Iterator[Job]:
        """The requests in the order of their times, drawn in chunks."""
        rng = np.random.default_rng(self.seed)
        times = self.workload.arrivals.times(np.random.default_rng(self.seed + 1))
        shares = [c.prefix_share for c in self.workload.classes]
        numbers = itertools.count()
        for chunk in self.workload.draw(rng):
            columns = (chunk.kind, chunk.prompt, chunk.thinking, chunk.answer, chunk.group)
            for kind, prompt, thinking, answer, group in zip(*(c.tolist() for c in columns), strict=True):
                number, at = next(numbers), next(times, None)
                if at is None or number >= self.requests:
                    return
                yield Job(number, at, kind, prompt, thinking, answer, (group * 64 + kind, int(prompt * shares[kind])))

    def _arrive(self, job: Job) -> None:
        kind = job.kind
        if job.number == self._window:
            self._tokens_at_window = (self.now, self._tokens())
        max_tokens = min(self._max_tokens[kind], self.plan.engine.max_model_len - job.prompt)
        if max_tokens < 1:
            self.metrics.refused["context_length_exceeded"] += 1
            return
        arrival = Arrival(
            self._tenants[kind],
            self.plan.model.name,
            job.prompt,
            max_tokens,
            self._asked[kind],
            priority=self.workload.classes[kind].priority,
            chain=self._chain(*job.prefix),
        )
        got = self.dispatcher.offer(arrival, self.dispatcher.table, self.now)
        if isinstance(got, Refusal):
            self.metrics.refused[got.reason.value] += 1
            return
        job.ticket = got
        self._jobs[id(got)] = job
        self._pump()

    def _pump(self) -> None:
        """Start what has room: first those that lost their rank, then whose turn it is."""
        dispatcher = self.dispatcher
        while self._orphans:
            job = self._orphans[0]
            choice, following = dispatcher.again(
                job.ticket, 0, dispatcher.table, self.now, resumed_tokens=job.generated
            )
            if choice.rank is None:
                break
            self._orphans.popleft()
            self.metrics.moved += 1
            following.of = job
            self._send(job, choice.rank.worker_id)
        while dispatcher.admission.queued:
            got = dispatcher.start_next(dispatcher.table, self.now)
            if got is None:
                break
            job = self._jobs[id(got.ticket)]
            if not isinstance(got, Start):
                del self._jobs[id(got.ticket)]
                self.metrics.refused[got.refusal.reason.value] += 1
                continue
            job.bound(got.ticket.estimate.budget.applied, got.ticket.arrival.max_tokens)
            got.following[0].of = job
            self._send(job, got.ranks[0].worker_id)
        if (dispatcher.admission.queued or self._orphans) and self._look_at == math.inf:
            self._look_at = self.now + LOOK_S
            self._push(self._look_at, _LOOK, 0)

    def _send(self, job: Job, worker_id: str) -> None:
        unit, rank = self._by_worker[worker_id]
        self.dispatcher.table.picked(unit.rows[rank], next(self._picks))
        unit.gang.submit(job, rank, self.now)
        self._watch(unit)

    def _end(self, job: Job) -> None:
        closed = job.thinking_tokens == job.wanted
        answer = job.total - job.thinking_tokens
        outcome = Outcome(min(job.thinking_tokens, job.total), max(0, answer), closed, answer >= job.answer)
        del self._jobs[id(job.ticket)]
        self.dispatcher.end(job.ticket, (outcome,), self.now)
        self.metrics.end(job, self.now, self._lag)

    def _chain(self, group: int, tokens: int) -> tuple[bytes, ...]:
        blocks = tokens // PREFIX_BLOCK
        if not blocks or not self.plan.engine.enable_prefix_caching:
            return ()
        whole = self._chains.get((group, blocks))
        if whole is None:
            whole = tuple(b"%d:%d" % (group, block) for block in range(blocks))
            if len(self._chains) < 1 << 14:
                self._chains[group, blocks] = whole
        return whole

    # Gangs.

    def _handle(self, kind: int, which: int) -> None:
        if kind == _STEP:
            self._step(which)
        elif kind == _LOOK:
            self._look_at = math.inf
            if self._coming or any(unit.up for unit in self._units):
                self._pump()  # else nobody will ever take them
        elif kind == _FAIL:
            failure = self.scenario.failures[which]
            if self._lose(failure.gang):
                self._coming.add(failure.gang)
                self._push(self.now + failure.restart_s, _UP, failure.gang)
        elif kind == _DRAIN:
            drain = self.scenario.drains[which]
            self._drain(drain.gang, drain.grace_s)
        elif kind == _STOP:
            if self._units[which].draining:
                self._lose(which)
        elif kind == _UP:
            self._coming.discard(which)
            self._attach(self._units[which])
            self._pump()
        elif self.scenario.scaling is not None:
            self._scale(self.scenario.scaling)

    def _step(self, which: int) -> None:
        unit = self._units[which]
        del self._due[which]
        gang = unit.gang
        ended = gang.advance()
        for job in ended:
            self._end(job)
        self._report_load(unit)
        self._watch(unit)
        if ended:
            admission = self.dispatcher.admission
            if self.metrics.wants_sample():
                self.metrics.sample(self.now, self._kv_used(), len(self._jobs) - admission.queued, admission.queued)
            if admission.queued or self._orphans:
                self._pump()

    def _report_load(self, unit: _Unit) -> None:
        gang, table = unit.gang, self.dispatcher.table
        tokens = gang.costs.kv_tokens
        for index in sorted(gang.touched):
            rank = gang.ranks[index]
            usage = min(1.0, rank.used(gang.steps) / tokens)
            table.report(unit.rows[index], load=rank.load, kv_usage=usage, step_time_s=gang.step_s)
        gang.touched.clear()

    def _watch(self, unit: _Unit) -> None:
        """Have an event at the gang's next change. One that moved earlier leaves a stale one behind."""
        which, due = unit.number, unit.gang.due
        if due != self._due.get(which, math.inf):
            if due == math.inf:
                del self._due[which]
            else:
                self._due[which] = due
                self._push(due, _STEP, which)

    def _attach(self, unit: _Unit) -> None:
        if unit.up:
            return
        unit.up, unit.up_since, unit.draining, unit.rows = True, self.now, False, []
        for rank in range(len(unit.gang.ranks)):
            view = self._view(unit, rank)
            self._by_worker[view.worker_id] = (unit, rank)
            unit.rows.append(self.dispatcher.table.put(view))

    def _view(self, unit: _Unit, rank: int) -> RankView:
        gang = unit.gang
        return RankView(
            worker_id=f"{gang.name}-{rank}",
            max_num_seqs=gang.limits.max_num_seqs,
            max_waiting_requests=self.plan.limits.max_waiting_requests,
            running=gang.ranks[rank].load,
            kv_tokens=gang.costs.kv_tokens,
            kv_usage=min(1.0, gang.ranks[rank].used(gang.steps) / gang.costs.kv_tokens),
            step_time_s=gang.step_s,
            draining=unit.draining,
            gang_id=gang.name,
        )

    def _lose(self, which: int) -> bool:
        """A gang is gone: what it had goes on elsewhere after the tokens so far. False: it was not there."""
        unit = self._units[which]
        if not unit.up:
            return False
        self._gpu_seconds += unit.gpus * (self.now - unit.up_since)
        lost = unit.gang.fail()
        self._watch(unit)
        unit.up = unit.draining = False
        for rank in range(len(unit.gang.ranks)):
            self.dispatcher.left(f"{unit.gang.name}-{rank}")
        self._orphans.extend(sorted(lost, key=lambda job: job.number))
        self._pump()
        return True

    def _drain(self, which: int, grace_s: float) -> None:
        unit = self._units[which]
        if not unit.up or unit.draining:
            return
        unit.draining = True
        for rank in range(len(unit.gang.ranks)):
            self.dispatcher.table.put(self._view(unit, rank))
        self._push(self.now + grace_s, _STOP, which)

    def _scale(self, by: Autoscaling) -> None:
        """As the fleet's own policy decides; service level burn is left out of what it sees."""
        coming, admission = self._coming, self.dispatcher.admission
        up = [unit.number for unit in self._units if unit.up and not unit.draining]
        pressure = self.dispatcher.table.pressure
        demand = FleetDemand(len(up), len(coming), admission.queued, admission.wait_s(self.now), pressure)
        decision, self._scaling = decide(demand, by.rules, self._scaling, self.now)
        more = decision.gangs - len(up) - len(coming)
        down = [unit.number for unit in self._units if not unit.up and unit.number not in coming]
        for which in down[: max(0, more)]:
            coming.add(which)
            self._push(self.now + by.start_s, _UP, which)
        for which in up[len(up) - max(0, -more) :]:
            self._drain(which, by.grace_s)
        self.metrics.scaled.append((self.now, decision.gangs))
        self._push(self.now + by.every_s, _SCALE, 0)

    def _schedule(self) -> None:
        for number, failure in enumerate(self.scenario.failures):
            self._push(failure.at, _FAIL, number)
        for number, drain in enumerate(self.scenario.drains):
            self._push(drain.at, _DRAIN, number)
        if self.scenario.scaling is not None:
            self._push(self.scenario.scaling.every_s, _SCALE, 0)

    def _push(self, at: float, kind: int, which: int) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), kind, which))

    def _kv_used(self) -> float:
        """The share of the fleet's KV in use."""
        used = total = 0
        for unit in self._units:
            if unit.up:
                used += sum(rank.used(unit.gang.steps) for rank in unit.gang.ranks)
                total += unit.gang.costs.kv_tokens * len(unit.gang.ranks)
        return used / total if total else 0.0

    def _tokens(self) -> int:
        return sum(u.gang.tokens + u.gang.running * (u.gang.steps_now() - u.gang.steps) for u in self._units)

    def _report(self) -> Report:
        window = None
        if self._tokens_at_window and self._tokens_at_last:
            (t0, n0), (t1, n1) = self._tokens_at_window, self._tokens_at_last
            window = (n1 - n0, t1 - t0)
        gangs = [unit.gang for unit in self._units]
        still = sum(unit.gpus * (self.now - unit.up_since) for unit in self._units if unit.up)
        return Report(
            plan=self.plan,
            workload=self.workload,
            seed=self.seed,
            requests=self.requests,
            gpus=sum(unit.gpus for unit in self._begins_with),
            gpu_seconds=self._gpu_seconds + still,
            simulated_seconds=self.now,
            metrics=self.metrics,
            window=window,
            preemptions=sum(gang.preemptions for gang in gangs),
            prompt_tokens=sum(gang.prompt_tokens for gang in gangs),
            cached_tokens=sum(gang.cached_tokens for gang in gangs),
        )
