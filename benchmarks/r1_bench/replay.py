"""A small simulated fleet that drives the router's own dispatcher, to compare policies.

Data-parallel ranks step at the pace of their gang's slowest. Deterministic; time is simulated.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from r1_cluster.routing import RankView
from r1_cluster.routing.admission import Refusal, Ticket
from r1_cluster.routing.dispatcher import Dispatcher, Start
from r1_cluster.routing.lengths import Outcome

from r1_bench.simulated import Hardware, Job, Rank
from r1_bench.thinking import Question


@dataclass(slots=True, eq=False)
class Replay:
    """What became of every question."""

    jobs: list[Job]
    refused: int
    preemptions: int
    seconds: float
    max_queued: int


def replay(
    questions: Iterable[Question], dispatcher: Dispatcher, *, gangs: int, ranks_per_gang: int, hardware: Hardware
) -> Replay:
    """Send ``questions`` at their times through ``dispatcher`` to a fleet of ``gangs``; run until all have ended."""
    fleet = [[Rank(f"g{gang}r{rank}", f"g{gang}", hardware) for rank in range(ranks_per_gang)] for gang in range(gangs)]
    return _Loop(fleet, dispatcher).run(sorted(questions, key=lambda q: q.at))


class _Loop:
    def __init__(self, fleet: Sequence[Sequence[Rank]], dispatcher: Dispatcher) -> None:
        self.fleet, self.dispatcher = fleet, dispatcher
        self.ranks = {rank.worker_id: rank for gang in fleet for rank in gang}
        self.jobs: dict[Ticket, Job] = {}
        self.done: list[Job] = []
        self.picks = itertools.count(1)
        self.refused = self.max_queued = 0
        self.stepping: dict[int, int] = {}  # gang -> steps under way
        self.events: list[tuple[float, int, int]] = []  # when, gang

    def run(self, questions: Sequence[Question]) -> Replay:
        upcoming = deque(questions)
        now = 0.0
        while upcoming or self.events:
            if upcoming and (not self.events or upcoming[0].at <= self.events[0][0]):
                now = upcoming[0].at
                self._arrive(upcoming.popleft(), now)
            else:
                now, _, gang = heapq.heappop(self.events)
                steps = self.stepping.pop(gang)
                for rank in self.fleet[gang]:
                    for job in rank.advance(steps, now):
                        self._end(job, now)
            self._pump(now)
            for gang in range(len(self.fleet)):
                if gang not in self.stepping:
                    self._step(gang, now)
        preemptions = sum(rank.preemptions for rank in self.ranks.values())
        return Replay(self.done, self.refused, preemptions, now, self.max_queued)

    def _arrive(self, question: Question, now: float) -> None:
        ticket = self.dispatcher.offer(question.arrival, self._views(), now)
        if isinstance(ticket, Refusal):
            self.refused += 1
            return
        self.jobs[ticket] = Job(question, ticket)
        self.max_queued = max(self.max_queued, self.dispatcher.admission.queued)

    def _pump(self, now: float) -> None:
        while self.dispatcher.admission.queued:
            got = self.dispatcher.start_next(self._views(), now)
            if got is None:
                return
            if not isinstance(got, Start):
                self.jobs.pop(got.ticket)
                self.refused += 1
                continue
            job = self.jobs[got.ticket]
            job.thinking_tokens = min(job.question.thinking_tokens, got.ticket.estimate.budget.applied)
            got.following[0].of = job
            rank = self.ranks[got.ranks[0].worker_id]
            rank.last_pick = next(self.picks)
            rank.waiting.append(job)

    def _end(self, job: Job, now: float) -> None:
        closed = job.thinking_tokens == job.question.thinking_tokens
        outcome = Outcome(job.thinking_tokens, job.question.answer_tokens, closed=closed)
        self.dispatcher.end(job.ticket, [outcome], now)
        self.jobs.pop(job.ticket)
        self.done.append(job)

    def _step(self, gang: int, now: float) -> None:
        ranks = self.fleet[gang]
        for rank in ranks:
            rank.schedule()
        if not any(rank.running or rank.prefilling for rank in ranks):
            return
        steps = min(rank.skippable() for rank in ranks)
        step_time = ranks[0].hardware.step_s + max(rank.step_cost() for rank in ranks)
        for rank in ranks:
            rank.step_time_s = step_time
        self.stepping[gang] = steps
        heapq.heappush(self.events, (now + steps * step_time, gang, gang))

    def _views(self) -> list[RankView]:
        return [rank.view() for rank in self.ranks.values()]
