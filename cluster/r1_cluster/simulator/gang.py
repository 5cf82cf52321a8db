"""A data-parallel gang of simulated ranks: enough of vLLM's scheduler to know when each token comes.

Continuous batching, chunked prefill, preemption of the latest by recomputation; a rank is in ``rank.py``. They
step together, at the pace of the fullest. Steps between two changes are alike but for the growing context, on which
their time depends linearly: they are taken at once, by a closed formula.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from r1_cluster.simulator.costs import Costs
from r1_cluster.simulator.job import Job
from r1_cluster.simulator.marks import Marks
from r1_cluster.simulator.rank import BLOCK, Limits, Rank

LONGEST = 4096  # steps taken at once, so that loads are reported


class Gang:
    """Steps by itself: call ``advance`` at ``due``, which moves with every ``submit``, ``advance``, ``fail``.

    ``at`` is when the steps under way began, or, where that is ahead, when the next one will: a prompt that comes
    during a step is planned for its end.
    """

    def __init__(self, name: str, ranks: int, costs: Costs, limits: Limits, clock: Callable[[], float]) -> None:
        self.name, self.costs, self.limits, self._clock = name, costs, limits, clock
        self.ranks = [Rank(costs.kv_tokens, limits) for _ in range(ranks)]
        self.steps = 0  # done
        self.at = 0.0
        self.due = math.inf
        self.step_s = 0.0
        self.tokens = 0  # generated
        self.preemptions = self.prompt_tokens = self.cached_tokens = 0
        self.touched: set[int] = set()  # ranks whose load is not what was last reported
        self.idle_since = 0.0
        self._ahead = 0  # steps under way
        self._running = 0
        self._ends: list[tuple[int, int, Job]] = []
        self._busy: set[int] = set()  # ranks with prompts waiting or under way
        self._marks = Marks()

    @property
    def running(self) -> int:
        return self._running

    def steps_now(self) -> int:
        """Done by now, between events too."""
        ahead = self._ahead
        if ahead < 2 or self.step_s <= 0:
            return self.steps
        done = int((self._clock() - self.at) / self.step_s)
        if done <= 0:
            return self.steps
        return self.steps + (done if done < ahead else ahead - 1)

    def submit(self, job: Job, rank: int, now: float) -> None:
        """A job arrives: it joins at the next step."""
        self.ranks[rank].waiting.append(job)
        job.rank = rank
        self._busy.add(rank)
        self.touched.add(rank)
        if not self._ahead:
            self.at = now
            self.steps = self._marks.next  # the pause lies between two marks
            self._go()
        elif now < self.at:
            self._go()  # the step that is to come, again
        elif self._ahead > 1:
            self._shorten(now)
            if not self._ends or self.steps + self._ahead < self._ends[0][0]:
                # Nothing ends with the step under way: go on to what comes after it, which needs no event of its own.
                self._done()
                self._go()

    def advance(self) -> list[Job]:
        """The steps under way are done. Returns the jobs that ended."""
        self._done()
        ended = self._finish() if self._ends and self._ends[0][0] <= self.steps else []
        if self._busy:
            self._prefilled()
        self._go()
        return ended

    def fail(self) -> list[Job]:
        """All ranks are gone, with all that was on them. Returns the jobs, with what they had generated."""
        done = self.steps_now() - self.steps
        if done:  # the steps under way, as far as they came
            self.due = self.at + self._time(done)
            self._marks.add(self.steps, done, self.at, self.due)
            self.steps, self.at = self.steps + done, self.due
            self.tokens += done * self._running
        lost: list[Job] = []
        for index, rank in enumerate(self.ranks):
            for job in list(rank.running.values()):
                self._leave(job)
                lost.append(job)
            lost += [*rank.prefilling, *rank.waiting]
            self.ranks[index] = Rank(self.costs.kv_tokens, self.limits)
        self._running = self._ahead = 0
        self._ends.clear()
        self._busy.clear()
        self.due = math.inf
        return lost

    # Steps.

    def _go(self) -> None:
        """Decide on the next steps: one with prompts in it, or several alike until something happens."""
        if self._busy:
            self._admit()
        ranks, steps = self.ranks, self.steps
        full, widest, most = self._preempt()
        n = self._running
        chunk = self._chunk() if self._busy else (0, 0, 0, 0)
        if not n and not chunk[0]:
            self._ahead, self.due, self.step_s = 0, math.inf, 0.0
            self.idle_since = self.at
            return
        fixed, slope = self.costs.line(n) if n else (0.0, 0.0)
        per_step = slope * len(ranks)
        if chunk[0]:
            added = self.costs.prefill(n, *chunk)
            self._ahead, self.step_s = 1, fixed + per_step * widest + added
            self.due = self.at + self.step_s
            return
        k = min(LONGEST, full)
        if self._ends:
            k = min(k, self._ends[0][0] - steps)
        self._ahead = max(1, k)
        # Step i (from 0) reads the context grown by i: the sum over k of them is k steps of the mean context.
        self._fixed, self._growth = fixed + per_step * widest, per_step * most
        self.due = self.at + self._time(self._ahead)
        self.step_s = (self.due - self.at) / self._ahead

    def _done(self) -> None:
        """Put the steps under way behind."""
        k = self._ahead
        if self._marks.next <= self.steps + k:
            self._marks.add(self.steps, k, self.at, self.due)
        self.steps += k
        self.tokens += k * self._running
        self.at, self._ahead = self.due, 0

    def _time(self, k: int) -> float:
        return k * (self._fixed + self._growth * (k - 1) / 2)

    def _shorten(self, now: float) -> None:
        """End at the first step boundary from ``now`` on."""
        elapsed = now - self.at
        a, b = self._growth / 2, self._fixed - self._growth / 2
        root = elapsed / b if a <= 0 else (math.sqrt(b * b + 4 * a * elapsed) - b) / (2 * a)
        k = min(self._ahead, max(1, math.ceil(root - 1e-9)))
        if k < self._ahead:
            self._ahead = k
            self.due = self.at + self._time(k)

    def _chunk(self) -> tuple[int, int, int, int]:
        """Prompt tokens of the next step, the cached ones before them on the busiest rank, ranks with any, and of how
        many prompts they are."""
        tokens = past = ranks = prompts = 0
        for index in self._busy:
            rank = self.ranks[index]
            if rank.prefilling:
                first = rank.prefilling[0]
                mine, of = rank.chunk()
                tokens, ranks, prompts = tokens + mine, ranks + 1, prompts + of
                past = max(past, first.prompt + first.generated - first.to_prefill)
        return tokens, past, ranks, prompts

    def _prefilled(self) -> None:
        """The step that is done had prompts in it: those that are through have their first token."""
        for index in sorted(self._busy):
            rank = self.ranks[index]
            for job in rank.prefilled():
                self._start(job, rank)
            if not rank.prefilling and not rank.waiting:
                self._busy.discard(index)

    def _start(self, job: Job, rank: Rank) -> None:
        rank.start(job, self.steps)
        job.gang, job.base = self, self.steps - job.generated - 1
        self.tokens += 1
        if job.first_at < 0:
            job.first_at = self.at
        self._running += 1
        self.touched.add(job.rank)
        heapq.heappush(self._ends, (job.base + job.total, job.number, job))

    def _finish(self) -> list[Job]:
        ended: list[Job] = []
        ends = self._ends
        while ends and ends[0][0] <= self.steps:
            step, _, job = heapq.heappop(ends)
            if job.gang is self and job.base + job.total == step:
                self._leave(job)
                ended.append(job)
        return ended

    def _leave(self, job: Job) -> None:
        answers = job.base + job.thinking_tokens + 1
        if job.answer_at < 0 and answers <= self.steps:
            job.answer_at = max(job.first_at, self._marks.time_of(answers, self.steps, self.at))
        job.generated = self.steps - job.base
        job.gang = None
        self.ranks[job.rank].leave(job, self.steps)
        self._running -= 1
        self.touched.add(job.rank)

    # KV.

    def _admit(self) -> None:
        """Waiting jobs go to prefill while there are seats and KV for their prompts."""
        for index in self._busy:
            rank = self.ranks[index]
            while job := rank.seated(self.steps):
                self._start(job, rank)
            prompts, cached = rank.admit(self.steps)
            self.prompt_tokens += prompts
            self.cached_tokens += cached

    def _preempt(self) -> tuple[int, int, int]:
        """Make room for the next step on every rank. Returns for how many steps there is room on all of them, the
        context of the fullest and the sequences of the one with most."""
        room, widest, most = 1 << 60, 0, 0
        kv, steps = self.costs.kv_tokens, self.steps
        for rank in self.ranks:
            n = len(rank.running)
            if not n:
                continue
            context = rank.context + n * (steps - rank.since)  # as ``used`` and ``settle`` have it
            free = kv - context - rank.reserved - n * BLOCK // 2
            while free < n and n > 1:
                job = next(reversed(rank.running.values()))
                self._leave(job)
                job.preemptions += 1
                self.preemptions += 1
                rank.waiting.appendleft(job)
                self._busy.add(job.rank)
                n, context = n - 1, rank.context
                free = kv - rank.used(steps)
            if free // n < room:
                room = free // n
            if context > widest:
                widest = context
            if n > most:
                most = n
        return max(1, room), widest, most
