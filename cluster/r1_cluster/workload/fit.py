"""A Workload from recorded traffic: a class a tenant, lengths as quantiles, arrivals as they came."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from r1_cluster.routing.survival import EDGES, Curve, Histogram
from r1_cluster.workload.arrivals import Trace
from r1_cluster.workload.lengths import Empirical, Fixed
from r1_cluster.workload.spec import RequestClass, Workload, WorkloadError
from r1_cluster.workload.traces import BLOCK, Record

STEPS = 400


def fit(records: Iterable[Record], *, name: str = "trace", source: str = "trace") -> Workload:
    """Raises WorkloadError where there are fewer than two records.

    Thoughts that were cut off count as "at least so long" (Kaplan-Meier), so that budgets in force do not teach that
    thoughts are short. A trace that does not tell thinking apart gives all output as answer.
    """
    kept = sorted(records, key=lambda record: record.at)
    if len(kept) < 2 or kept[-1].at <= kept[0].at:
        raise WorkloadError(f"{source}: {len(kept)} requests at one time: a workload takes at least two, apart in time")
    groups: dict[str, list[Record]] = {}
    for record in kept:
        groups.setdefault(record.tenant, []).append(record)
    share = _prefix_share(kept)
    start = kept[0].at
    return Workload(
        name=name,
        classes=tuple(_class(tenant, of, share) for tenant, of in groups.items()),
        arrivals=Trace(at=tuple(record.at - start for record in kept)),
        notes=(f"fitted to {len(kept)} requests of {source}",),
    )


def _class(tenant: str, records: list[Record], share: float) -> RequestClass:
    name = tenant or "all"
    prompts = np.array([r.prompt_tokens for r in records])
    answers = np.array([r.answer_tokens for r in records])
    longest = max((r.thinking_tokens or 0) + r.answer_tokens for r in records)
    return RequestClass(
        name=name,
        weight=float(len(records)),
        prompt_tokens=Empirical.of(prompts),
        thinking_tokens=_thinking(records),
        answer_tokens=Empirical.of(answers),
        prefix_share=share,
        # A stand-in: of n requests that share a p-th of their prompts in the mean, 1 - p begin something new.
        prefix_groups=max(1, round(len(records) * (1 - share))) if share else 1,
        tenant=name if tenant else "default",
        max_tokens=max(32_768, longest),
    )


def _thinking(records: list[Record]) -> Fixed | Empirical:
    told = [(r.thinking_tokens, r.finished) for r in records if r.thinking_tokens is not None]
    if not any(tokens for tokens, _ in told):
        return Fixed(tokens=0)
    if all(finished for _, finished in told):
        return Empirical.of(np.array([tokens for tokens, _ in told]))
    histogram = Histogram(half_life=1e9)
    for tokens, finished in told:
        histogram.observe(tokens, censored=not finished)
    curve = Curve.of(histogram.hazards(np.zeros(len(EDGES) - 1), 1e-9))
    # Past the longest that was seen nothing is known: the rest counts there.
    longest = float(max(tokens for tokens, _ in told))
    knots = [min(longest, curve.quantile(step / STEPS)) for step in range(STEPS + 1)]
    return Empirical(knots=tuple(np.maximum.accumulate(knots).tolist()))


def _prefix_share(records: list[Record]) -> float:
    """Of all prompt tokens, those in blocks that an earlier prompt began with as well."""
    seen: set[int] = set()
    shared = total = 0
    for record in records:
        total += record.prompt_tokens
        known = next((i for i, b in enumerate(record.blocks) if b not in seen), len(record.blocks))
        shared += min(record.prompt_tokens, known * BLOCK)
        seen.update(record.blocks)
    return min(0.99, shared / total)
