"""What a simulation measures while it runs, in memory that does not grow with the requests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from r1_cluster.simulator.job import Job
from r1_cluster.simulator.sketch import Sketch


@dataclass(frozen=True, slots=True)
class Slo:
    """What makes a request good, in seconds. TTFA: to the first token of the answer, after the thought."""

    ttft: float = 10.0
    tpot: float = 0.1
    ttfa: float = float("inf")

    def holds(self, ttft: float, ttfa: float, tpot: float) -> bool:
        return ttft <= self.ttft and tpot <= self.tpot and ttfa <= self.ttfa


@dataclass(slots=True)
class Metrics:
    """Over all requests that ended. ``history``: (time, share of KV in use, running, queued). ``scaled``: how many
    gangs autoscaling wanted, and when."""

    slo: Slo
    ttft: Sketch = field(default_factory=Sketch)
    ttfa: Sketch = field(default_factory=Sketch)
    tpot: Sketch = field(default_factory=Sketch)
    total: Sketch = field(default_factory=Sketch)
    thinking: Sketch = field(default_factory=Sketch)
    ended: int = 0
    good: int = 0
    cut: int = 0  # thoughts closed by a budget
    moved: int = 0  # times a request went on elsewhere after its rank was lost
    output_tokens: int = 0
    thinking_tokens: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    history: list[tuple[float, float, int, int]] = field(default_factory=list)
    scaled: list[tuple[float, int]] = field(default_factory=list)
    every: int = 1
    _seen: int = 0

    @property
    def done(self) -> int:
        """Requests that ended or were refused."""
        return self.ended + sum(self.refused.values()) if self.refused else self.ended

    def end(self, job: Job, now: float, lag: float) -> None:
        """``lag``: seconds from an engine's token to the client's."""
        ttft, answer = job.first_at - job.at, (job.answer_at if job.answer_at >= 0 else now) - job.at
        tpot = (now - job.first_at) / (job.total - 1) if job.total > 1 else 0.0
        ttft, answer = ttft + lag, answer + lag
        self.ttft.add(ttft)
        self.ttfa.add(answer)
        self.tpot.add(tpot)
        self.total.add(now - job.at + lag)
        self.thinking.add(job.thinking_tokens)
        self.ended += 1
        self.good += self.slo.holds(ttft, answer, tpot)
        self.cut += job.thinking_tokens < job.wanted
        self.output_tokens += job.total
        self.thinking_tokens += job.thinking_tokens

    def wants_sample(self) -> bool:
        self._seen += 1
        return self._seen % self.every == 0

    def sample(self, now: float, kv: float, running: int, queued: int) -> None:
        """At most 1,024 samples are kept: past that every second one goes, and half as many are taken."""
        self.history.append((round(now, 3), round(kv, 4), running, queued))
        if len(self.history) >= 1024:
            self.history = self.history[::2]
            self.every *= 2
