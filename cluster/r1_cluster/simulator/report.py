"""What came of a simulation, as one value and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r1_cluster.plan import Plan
from r1_cluster.simulator.metrics import Metrics
from r1_cluster.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """``window``: output tokens and seconds between the arrivals of a fifth of the requests and of the last one, where
    ``gpus``: at the start;: at the start; ``gpu_seconds``: of all while they were up."""

    plan: Plan
    workload: Workload
    seed: int
    requests: int
    gpus: int
    gpu_seconds: float
    simulated_seconds: float
    metrics: Metrics
    window: tuple[int, float] | None
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    prefill_busy: float | None = None

    @property
    def throughput(self) -> float:
        """Output tokens/s over the window, or over all where it has no length."""
        tokens, seconds = self.window or (0, 0.0)
        if tokens and seconds > 0.05 * self.simulated_seconds:
            return tokens / seconds
        return self.metrics.output_tokens / self.simulated_seconds if self.simulated_seconds else 0.0

    @property
    def mean_gpus(self) -> float:
        """Those up, over the whole run."""
        return self.gpu_seconds / self.simulated_seconds if self.simulated_seconds else float(self.gpus)

    @property
    def good_share(self) -> float:
        """Of all requests that are judged, refused ones included, those that kept the SLO."""
        judged = min(self.requests, self.metrics.judged.stop) - self.metrics.judged.start
        return self.metrics.good / judged if judged > 0 else 0.0

    def as_dict(self, wall_seconds: float) -> dict[str, Any]:
        """Times in seconds, throughput in output tokens/s, goodput in good requests/s."""
        m, seconds = self.metrics, self.simulated_seconds or 1.0
        return {
            "plan": self.plan.name,
            "plan_hash": self.plan.hash,
            "workload": self.workload.name,
            "workload_hash": self.workload.hash,
            "seed": self.seed,
            "gpus": self.gpus,
            "mean_gpus": round(self.mean_gpus, 3),
            "requests": self.requests,
            "completed": m.ended,
            "refused": dict(sorted(m.refused.items())),
            "unfinished": self.requests - m.ended - sum(m.refused.values()),
            "throughput": round(self.throughput, 3),
            "throughput_per_gpu": round(self.throughput / (self.mean_gpus or 1), 3),
            "requests_per_second": round(m.ended / seconds, 6),
            "goodput": round(m.good / seconds, 6),
            "good_share": round(self.good_share, 6),
            "slo": {n: v for n in ("ttft", "tpot", "ttfa") if (v := getattr(m.slo, n)) != float("inf")},
            "ttft": m.ttft.summary(),
            "ttfa": m.ttfa.summary(),
            "tpot": m.tpot.summary(),
            "latency": m.total.summary(),
            "thinking_tokens": m.thinking.summary(),
            "thoughts_cut": round(m.cut / m.tpot.count, 6) if m.tpot.count else 0.0,
            "output_tokens": m.output_tokens,
            "prompt_tokens": self.prompt_tokens,
            "cached_prompt_share": round(self.cached_tokens / self.prompt_tokens, 6) if self.prompt_tokens else 0.0,
            "preemptions": self.preemptions,
            **({} if self.prefill_busy is None else {"prefill_busy": round(self.prefill_busy, 4)}),
            "moved": m.moved,
            "simulated_seconds": round(self.simulated_seconds, 6),
            "wall_seconds": round(wall_seconds, 3),
        }
