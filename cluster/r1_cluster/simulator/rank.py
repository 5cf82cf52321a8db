"""One simulated rank: seats, paged KV, and a prefix cache in what is free."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from r1_cluster.simulator.job import Job

BLOCK = 16  # tokens of a KV block; a sequence wastes half of its last one


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one rank, by the plan."""

    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_caching: bool


class Rank:
    """``context`` KV tokens of ``running`` sequences as of step ``since``; each grows by one a step. ``reserved``: of
    prompts under way."""

    __slots__ = (
        "_cache",
        "_held",
        "context",
        "kv_tokens",
        "limits",
        "prefilling",
        "reserved",
        "running",
        "since",
        "waiting",
    )

    def __init__(self, kv_tokens: int, limits: Limits) -> None:
        self.kv_tokens, self.limits = kv_tokens, limits
        self.running: dict[int, Job] = {}  # in the order they started
        self.waiting: deque[Job] = deque()
        self.prefilling: deque[Job] = deque()
        self.context = self.since = self.reserved = 0
        self._cache: OrderedDict[int, int] = OrderedDict()  # prefix group -> tokens of it held
        self._held = 0  # in all

    @property
    def seats(self) -> int:
        return len(self.running) + len(self.prefilling)

    @property
    def load(self) -> int:
        return len(self.running) + len(self.prefilling) + len(self.waiting)

    def used(self, steps: int) -> int:
        """KV tokens at the gang's step count, with what prompts under way have reserved."""
        n = len(self.running)
        return self.context + n * (steps - self.since) + self.reserved + n * BLOCK // 2

    def settle(self, steps: int) -> None:
        """Bring ``context`` up to the gang's step count: before what runs changes."""
        self.context += len(self.running) * (steps - self.since)
        self.since = steps

    def admit(self, steps: int) -> tuple[int, int]:
        """Waiting jobs go to prefill while there are seats and KV for their prompts. Returns the tokens of these
        prompts and how many of them were cached."""
        prompts = cached = 0
        while self.waiting and self.seats < self.limits.max_num_seqs:
            job = self.waiting[0]
            if job.delivered:
                break
            held = job.prompt + job.generated
            if self.used(steps) + held > self.kv_tokens and self.seats:
                break
            self.waiting.popleft()
            job.cached = self._found(job)
            job.to_prefill = max(1, held - job.cached)
            prompts += held
            cached += job.cached
            self.reserved += held
            self.prefilling.append(job)
            self._trim(steps)
        return prompts, cached

    def seated(self, steps: int) -> Job | None:
        """The next waiting job whose KV came from a prefill pool, where there is room for it."""
        if not self.waiting or not self.waiting[0].delivered or self.seats >= self.limits.max_num_seqs:
            return None
        job = self.waiting[0]
        held = job.prompt + job.generated
        if self.used(steps) + held > self.kv_tokens and self.seats:
            return None
        job.delivered = False
        self.reserved += held
        return self.waiting.popleft()

    def release(self, job: Job, steps: int) -> None:
        """A job's prompt is computed, and goes on elsewhere."""
        self.reserved -= job.prompt + job.generated
        self._remember(job, steps)

    def chunk(self) -> tuple[int, int]:
        """Prompt tokens of the next step, and of how many prompts they are."""
        room = max(1, self.limits.max_num_batched_tokens - len(self.running))
        mine = prompts = 0
        for job in self.prefilling:
            mine += min(room - mine, job.to_prefill)
            prompts += 1
            if mine >= room:
                break
        return mine, prompts

    def prefilled(self) -> list[Job]:
        """A step with prompts is done. Returns those that are through."""
        room = max(1, self.limits.max_num_batched_tokens - len(self.running))
        through: list[Job] = []
        while self.prefilling and room:
            job = self.prefilling[0]
            done = min(room, job.to_prefill)
            job.to_prefill -= done
            room -= done
            if job.to_prefill:
                break
            through.append(self.prefilling.popleft())
        return through

    def start(self, job: Job, steps: int) -> None:
        """A job's prompt is computed: it has its first token, or the next after what it had, and decodes."""
        held = job.prompt + job.generated
        self.reserved -= held
        self.settle(steps)
        self._remember(job, steps)
        self.running[job.number] = job
        self.context += held + 1

    def leave(self, job: Job, steps: int) -> None:
        """It runs no more, having generated what it says."""
        self.settle(steps)
        del self.running[job.number]
        self.context -= job.prompt + job.generated

    def cached(self, job: Job) -> int:
        """Tokens of its prompt that the prefix cache holds."""
        group, tokens = job.prefix
        held = self._cache.get(group, 0) if tokens and self.limits.prefix_caching else 0
        return min(held, tokens, job.prompt - 1) // BLOCK * BLOCK

    def _found(self, job: Job) -> int:
        """As ``cached``, which keeps it from being forgotten."""
        if job.prefix[0] in self._cache:
            self._cache.move_to_end(job.prefix[0])
        return self.cached(job)

    def _remember(self, job: Job, steps: int) -> None:
        group, tokens = job.prefix
        if tokens and self.limits.prefix_caching:
            old = self._cache.get(group, 0)
            self._cache[group] = max(old, tokens)
            self._cache.move_to_end(group)
            self._held += max(0, tokens - old)
            self._trim(steps)

    def _trim(self, steps: int) -> None:
        """Blocks nobody uses live in what is free, the least recently used forgotten first."""
        room = max(0, self.kv_tokens - self.used(steps))
        while self._held > room:
            self._held -= self._cache.popitem(last=False)[1]
