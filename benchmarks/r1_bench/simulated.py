"""One simulated rank: enough of vLLM's scheduler to compare policies.

Continuous batching, chunked prefill, paged KV with preemption of the latest by recomputation, and a prefix cache in
what is free. Steps in which nothing can happen are taken several at a time.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from r1_cluster.routing import RankView
from r1_cluster.routing.admission import Ticket

from r1_bench.thinking import BLOCK_TOKENS, Question

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

    def standing(self) -> tuple[int, int, bool]:
        return self.completion_tokens, self.answer_tokens, self.thinking

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
