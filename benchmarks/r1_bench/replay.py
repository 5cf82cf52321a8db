"""A small simulated fleet that drives the router's own dispatcher: enough of vLLM's scheduler to compare policies.

Continuous batching, chunked prefill, paged KV with preemption of the latest by recomputation, a prefix cache in what
is free, and data-parallel ranks that step at the pace of their gang's slowest. Deterministic; time is simulated.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from r1_cluster.routing import RankView
from r1_cluster.routing.admission import Refusal, Ticket
from r1_cluster.routing.dispatcher import Dispatcher, Start
from r1_cluster.routing.lengths import Outcome

from r1_bench.thinking import Question

BLOCK_TOKENS = 64
MAX_SKIP = 4  # engine steps taken at once while nothing can happen within them


@dataclass(frozen=True, slots=True)
class Hardware:
    """One rank, and what a step takes: seconds a step, a sequence in it, a KV token read, a prompt token computed.

    The defaults resemble DeepSeek-R1 with 8-way data-parallel attention on H200s: 70 kB of KV a token at 2.9 TB/s,
    about 10,000 prompt tokens a second. They set the scale; the comparison does not hang on them.
    """

    kv_tokens: int = 400_000
    max_num_seqs: int = 256
    max_waiting_requests: int = 1024
    prefill_chunk: int = 2048
    step_s: float = 0.022
    sequence_s: float = 50e-6
    kv_token_s: float = 24e-9
    prompt_token_s: float = 100e-6


@dataclass(slots=True, eq=False)
class Job:
    """A question on its way. ``base`` is the rank's step count at which its generated tokens would be 0."""

    question: Question
    ticket: Ticket
    thinking_tokens: int = 0  # within its budget
    generated: int = 0  # while not running
    base: int = 0
    rank: Rank | None = None
    to_prefill: int = 0
    cached: int = 0
    first_token_at: float = -1.0  # not yet
    ended_at: float = -1.0
    preemptions: int = 0

    @property
    def total(self) -> int:
        return self.thinking_tokens + self.question.answer_tokens

    @property
    def completion_tokens(self) -> int:
        return self.generated if self.rank is None else self.rank.steps - self.base

    @property
    def thinking(self) -> bool:
        return self.completion_tokens < self.thinking_tokens

    @property
    def answer_tokens(self) -> int:
        return max(0, self.completion_tokens - self.thinking_tokens)

    @property
    def ttft_s(self) -> float:
        return self.first_token_at - self.question.at

    @property
    def tpot_s(self) -> float:
        return (self.ended_at - self.first_token_at) / max(1, self.total - 1)


@dataclass(slots=True, eq=False)
class Rank:
    worker_id: str
    gang_id: str
    hardware: Hardware
    steps: int = 0
    kv_used: int = 0
    preemptions: int = 0
    last_pick: int = 0
    step_time_s: float = 0.0
    waiting: deque[Job] = field(default_factory=deque)
    prefilling: deque[Job] = field(default_factory=deque)
    running: OrderedDict[int, Job] = field(default_factory=OrderedDict)
    ends: list[tuple[int, int, Job]] = field(default_factory=list)
    cache: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def view(self) -> RankView:
        return RankView(
            worker_id=self.worker_id,
            max_num_seqs=self.hardware.max_num_seqs,
            max_waiting_requests=self.hardware.max_waiting_requests,
            in_flight=len(self.running) + len(self.prefilling) + len(self.waiting),
            running=len(self.running) + len(self.prefilling),
            waiting=len(self.waiting),
            kv_usage=self.kv_used / self.hardware.kv_tokens,
            kv_tokens=self.hardware.kv_tokens,
            step_time_s=self.step_time_s,
            last_pick=self.last_pick,
            gang_id=self.gang_id,
        )

    def schedule(self) -> None:
        """Move waiting jobs to prefill while there are seats and KV for their prompts."""
        while self.waiting and len(self.running) + len(self.prefilling) < self.hardware.max_num_seqs:
            job = self.waiting[0]
            context = job.question.prompt_tokens + job.generated
            if self.kv_used + context > self.hardware.kv_tokens:
                return
            self.waiting.popleft()
            job.cached = self._cached(job)
            job.to_prefill = max(1, context - job.cached)
            self.kv_used += context
            self.prefilling.append(job)
            self._trim()

    def step_cost(self) -> float:
        hardware = self.hardware
        prompt = min(hardware.prefill_chunk, sum(job.to_prefill for job in self.prefilling))
        return (
            hardware.sequence_s * len(self.running)
            + hardware.kv_token_s * self.kv_used
            + hardware.prompt_token_s * prompt
        )

    def skippable(self) -> int:
        """Steps until something happens here: an end, or KV running out."""
        if self.prefilling:
            return 1
        if not self.running:
            return MAX_SKIP
        until_full = (self.hardware.kv_tokens - self.kv_used) // len(self.running)
        return max(1, min(MAX_SKIP, self.ends[0][0] - self.steps, until_full))

    def advance(self, steps: int, now: float) -> list[Job]:
        """``now`` is when they are done. Returns the jobs that ended."""
        while self.running and self.kv_used + steps * len(self.running) > self.hardware.kv_tokens:
            self._preempt()
        self.steps += steps
        self.kv_used += steps * len(self.running)
        ended = []
        while self.ends and self.ends[0][0] <= self.steps:
            _, number, job = heapq.heappop(self.ends)
            if self.running.get(number) is job and job.rank is self and job.base + job.total <= self.steps:
                self._leave(job, number)
                job.ended_at = now
                ended.append(job)
        self._prefill(now)
        return ended

    def _prefill(self, now: float) -> None:
        chunk = self.hardware.prefill_chunk
        while self.prefilling and chunk:
            job = self.prefilling[0]
            done = min(chunk, job.to_prefill)
            job.to_prefill -= done
            chunk -= done
            if job.to_prefill:
                return
            self.prefilling.popleft()
            self._remember(job)
            job.rank, job.base = self, self.steps - job.generated - 1  # prefill yields a token
            self.kv_used += 1
            if job.first_token_at < 0:
                job.first_token_at = now
            self.running[job.question.number] = job
            heapq.heappush(self.ends, (job.base + job.total, job.question.number, job))

    def _preempt(self) -> None:
        number, job = next(reversed(self.running.items()))
        self._leave(job, number)
        job.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(job)

    def _leave(self, job: Job, number: int) -> None:
        job.generated = job.completion_tokens
        job.rank = None
        del self.running[number]
        self.kv_used -= job.question.prompt_tokens + job.generated

    def _cached(self, job: Job) -> int:
        blocks = 0
        for block in job.question.chain:
            if block not in self.cache:
                break
            self.cache.move_to_end(block)
            blocks += 1
        return min(blocks * BLOCK_TOKENS, job.question.prompt_tokens - 1)

    def _remember(self, job: Job) -> None:
        for block in reversed(job.question.chain):
            self.cache[block] = None
            self.cache.move_to_end(block)
        self._trim()

    def _trim(self) -> None:
        """Blocks nobody uses live in what is free."""
        room = max(0, self.hardware.kv_tokens - self.kv_used) // BLOCK_TOKENS
        while len(self.cache) > room:
            self.cache.popitem(last=False)


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
