"""The router's desk of a simulation: jobs through the router's own Dispatcher onto simulated gangs."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping

from r1_cluster.plan import Plan
from r1_cluster.routing.admission import Arrival, Refusal
from r1_cluster.routing.budget import Asked
from r1_cluster.routing.dispatcher import Dispatcher, Start
from r1_cluster.routing.lengths import Outcome
from r1_cluster.routing.prefix import Chain
from r1_cluster.routing.tenants import Tenant
from r1_cluster.simulator.agenda import Agenda, Kind
from r1_cluster.simulator.job import Job
from r1_cluster.simulator.metrics import Metrics
from r1_cluster.simulator.units import Units
from r1_cluster.workload import Workload

LOOK_S = 0.1  # between looks for room while requests wait, as the router's desk has it
PREFIX_BLOCK = 512  # tokens of the router's prefix blocks here: coarser than live, for speed


class Desk:
    """``arrive`` a job, ``pump`` whenever room may have come, ``end`` it. What waits is looked at again by itself."""

    def __init__(
        self,
        plan: Plan,
        workload: Workload,
        tenants: Mapping[str, Tenant],
        dispatcher: Dispatcher,
        units: Units,
        agenda: Agenda,
        metrics: Metrics,
    ) -> None:
        self.dispatcher, self.metrics = dispatcher, metrics
        self.jobs: dict[int, Job] = {}  # by id of its ticket, as long as that lives
        self.orphans: deque[Job] = deque()  # those that lost their rank
        self._units, self._agenda = units, agenda
        self._model, self._most = plan.model.name, plan.engine.max_model_len
        self._prefix_caching = plan.engine.enable_prefix_caching
        self._tenants = [tenants.get(c.tenant) or Tenant(name=c.tenant) for c in workload.classes]
        self._asked = [Asked(c.budget) if c.budget is not None else Asked() for c in workload.classes]
        self._max_tokens = [min(c.max_tokens, self._most - 1) for c in workload.classes]
        self._priorities = [c.priority for c in workload.classes]
        self._picks = itertools.count(1)
        self._chains: dict[tuple[int, int], Chain] = {}
        self._lag = units.all[0].gang.costs.first_token_s
        self._look_at = math.inf

    @property
    def queued(self) -> int:
        return self.dispatcher.admission.queued

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.jobs or self.orphans)

    def arrive(self, job: Job) -> None:
        kind, now = job.kind, self._agenda.now
        max_tokens = min(self._max_tokens[kind], self._most - job.prompt)
        if max_tokens < 1:
            self.metrics.refused["context_length_exceeded"] += 1
            return
        arrival = Arrival(
            self._tenants[kind],
            self._model,
            job.prompt,
            max_tokens,
            self._asked[kind],
            priority=self._priorities[kind],
            chain=self._chain(*job.prefix),
        )
        got = self.dispatcher.offer(arrival, self.dispatcher.table, now)
        if isinstance(got, Refusal):
            self.metrics.refused[got.reason.value] += 1
            return
        job.ticket = got
        self.jobs[id(got)] = job
        self.pump()

    def pump(self) -> None:
        """Start what has room: first those that lost their rank, then whose turn it is."""
        dispatcher, now = self.dispatcher, self._agenda.now
        while self.orphans:
            job = self.orphans[0]
            choice, following = dispatcher.again(job.ticket, 0, dispatcher.table, now, resumed_tokens=job.generated)
            if choice.rank is None:
                break
            self.orphans.popleft()
            self.metrics.moved += 1
            following.of = job
            self._send(job, choice.rank.worker_id)
        while self.queued:
            got = dispatcher.start_next(dispatcher.table, now)
            if got is None:
                break
            job = self.jobs[id(got.ticket)]
            if not isinstance(got, Start):
                del self.jobs[id(got.ticket)]
                self.metrics.refused[got.refusal.reason.value] += 1
                continue
            job.bound(got.ticket.estimate.budget.applied, got.ticket.arrival.max_tokens)
            got.following[0].of = job
            self._send(job, got.ranks[0].worker_id)
        if (self.queued or self.orphans) and self._look_at == math.inf:
            self._look_at = now + LOOK_S
            self._agenda.push(self._look_at, Kind.LOOK, 0)

    def look(self, *, hopeful: bool) -> None:
        """``LOOK_S`` after something had to wait. Not ``hopeful``: nobody will ever take it."""
        self._look_at = math.inf
        if hopeful:
            self.pump()

    def end(self, job: Job) -> None:
        closed = job.thinking_tokens == job.wanted
        answer = job.total - job.thinking_tokens
        outcome = Outcome(min(job.thinking_tokens, job.total), max(0, answer), closed, answer >= job.answer)
        del self.jobs[id(job.ticket)]
        self.dispatcher.end(job.ticket, (outcome,), self._agenda.now)
        self.metrics.end(job, self._agenda.now, self._lag)

    def _send(self, job: Job, worker_id: str) -> None:
        unit, rank = self._units.by_worker[worker_id]
        self.dispatcher.table.picked(unit.rows[rank], next(self._picks))
        self._units.submit(job, unit, rank)

    def _chain(self, group: int, tokens: int) -> Chain:
        blocks = tokens // PREFIX_BLOCK
        if not blocks or not self._prefix_caching:
            return ()
        whole = self._chains.get((group, blocks))
        if whole is None:
            whole = tuple(b"%d:%d" % (group, block) for block in range(blocks))
            if len(self._chains) < 1 << 14:
                self._chains[group, blocks] = whole
        return whole
