"""A workload under a thinking budget, as the few moments that sizing needs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from r1_cluster.catalog import Architecture
from r1_cluster.planner.prefix import PrefixCache
from r1_cluster.planner.request import PlanningError
from r1_cluster.routing.budget import BudgetRules
from r1_cluster.workload import Bursty, Diurnal, RequestClass, Switching, Workload
from r1_cluster.workload.lengths import Lengths

RULES = BudgetRules()
ANSWER_ROOM = RULES.answer_tokens + RULES.closing_tokens  # what the router keeps free behind a thought
POINTS, FEW = 256, 8  # quantiles a distribution is read at


@dataclass(frozen=True)
class Demand:
    """Tokens of one request. ``cached``: prompt tokens that a prefix cache without bounds would hold, ``prefixes`` how
    many one of a size does; None: all of ``cached``.

    A running request holds ``context`` tokens on average, ``context_square`` is the mean of its square: averages over
    time, so long thoughts count longer. ``cut``: share of thoughts that reach the most they may be. ``rate``:
    requests/s to size for, at the peak of the pattern, None to saturate; ``dispersion``: variance over mean of what
    runs at once, 1 for Poisson arrivals. ``prompt_square``: variance over squared mean of prompts.
    ``short``: harmonic mean of outputs.
    """

    prompt: float
    cached: float
    thinking: float
    output: float
    context: float
    context_square: float
    prompt_p95: float
    thinking_p95: float
    cut: float
    max_tokens: int
    max_model_len: int
    rate: float | None
    dispersion: float
    prompt_square: float = 0.0
    short: float = 1e9
    prefixes: PrefixCache | None = None

    def hits(self, room: float) -> float:
        """Prompt tokens found in the prefix caches of a fleet that has ``room`` tokens of KV free."""
        return self.cached if self.prefixes is None else self.prefixes.found(room)


def demand(
    workload: Workload,
    model: Architecture,
    budget: int | None,
    *,
    rate: float | None = None,
    max_context: int | None = None,
) -> Demand:
    """What ``workload`` asks of a fleet. Thoughts end at ``budget``, at their class's own, or where ``max_tokens``
    leaves just room for an answer.

    Raises PlanningError where nothing would be left to think.
    """
    classes = workload.classes
    longest_prompt = ceil(max(each.prompt_tokens.quantile(0.999) for each in classes))
    answer_room = max(ANSWER_ROOM, ceil(max(each.answer_tokens.quantile(0.99) for each in classes)))
    ceiling = min(model.max_position_embeddings, max_context or model.max_position_embeddings)
    wanted = max(each.max_tokens for each in classes)
    if budget is not None:
        wanted = min(wanted, budget + answer_room)
    max_tokens = min(wanted, ceiling - longest_prompt)
    if max_tokens <= answer_room:
        raise PlanningError(
            f"a context of {ceiling:,} tokens has no room to think: prompts of up to {longest_prompt:,} and answers of "
            f"up to {answer_room:,}: raise --max-context, or take a workload with shorter prompts"
        )
    moments = np.zeros(7)
    thoughts, reached, prompts, shares = [], [], [], []
    for share, each in zip(workload.shares, classes, strict=True):
        limit = _limit(each, budget, min(max_tokens, each.max_tokens) - answer_room)
        prompt = _points(each.prompt_tokens, FEW)[:, None, None]
        thinking = np.minimum(_points(each.thinking_tokens, POINTS), limit)
        answer = _points(each.answer_tokens, FEW)[None, None, :]
        long = np.maximum(1.0, thinking[None, :, None] + answer)
        held = prompt * long + long**2 / 2  # context summed over a request's steps
        square = prompt**2 * long + prompt * long**2 + long**3 / 3
        mean = each.prompt_tokens.mean()
        means = (
            mean,
            mean * each.prefix_share,
            thinking.mean(),
            long.mean(),
            held.mean(),
            square.mean(),
            (1 / long).mean(),
        )
        moments += share * np.array(means)
        thoughts.append(thinking)
        reached.append(thinking >= limit)
        prompts.append(_points(each.prompt_tokens, POINTS))
        shares.append(np.full(POINTS, share / POINTS))
    weight = np.concatenate(shares)
    prompt_mean, cached, thinking_mean, output, held_mean, square_mean, inverse = (float(value) for value in moments)
    peak, dispersion = _pattern(workload)
    mean_rate = rate if rate is not None else workload.arrivals.rate
    return Demand(
        prompt=prompt_mean,
        cached=cached,
        thinking=thinking_mean,
        output=max(2.0, output),
        context=held_mean / output,
        context_square=square_mean / output,
        prompt_p95=_quantile(np.concatenate(prompts), weight, 0.95),
        thinking_p95=_quantile(np.concatenate(thoughts), weight, 0.95),
        cut=float(weight[np.concatenate(reached)].sum()),
        max_tokens=max_tokens,
        max_model_len=min(ceiling, ceil((longest_prompt + max_tokens) / 1024) * 1024),
        rate=None if mean_rate is None else mean_rate * peak,
        dispersion=dispersion,
        short=max(2.0, 1 / inverse),
        prompt_square=_spread(np.concatenate(prompts), weight),
        prefixes=PrefixCache.of(workload) if cached else None,
    )


def _limit(each: RequestClass, budget: int | None, room: int) -> int:
    return max(1, min(room, *(limit for limit in (budget, each.budget) if limit is not None), room))


def _pattern(workload: Workload) -> tuple[float, float]:
    """(peak over mean rate, dispersion). A day is sized for its peak, surges for the surge; clumps spread what runs.

    Requests that run long against the gaps between arrivals: the variance of their number is (1 + cv^2) / 2 of
    Poisson's for gamma gaps (Whitt 1984, the G/M/infinity queue in heavy traffic with exponential lifetimes).
    """
    match workload.arrivals:
        case Diurnal(swing=swing):
            return 1 + swing, 1.0
        case Switching(surge=surge, share=share):
            return surge / (1 + share * (surge - 1)), 1.0
        case Bursty(cv=cv):
            return 1.0, (1 + cv**2) / 2
    return 1.0, 1.0


def _points(values: Lengths, count: int) -> NDArray[np.float64]:
    return np.array([values.quantile((i + 0.5) / count) for i in range(count)], dtype=float)


def _spread(values: NDArray[np.float64], share: NDArray[np.float64]) -> float:
    mean = float(values @ share)
    return float(values**2 @ share) / mean**2 - 1


def _quantile(values: NDArray[np.float64], share: NDArray[np.float64], q: float) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(share[order]), q)])
