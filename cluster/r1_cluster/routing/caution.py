"""How sure to be that a rank's cache will hold before it is given one more request: as sure as a preemption is dear.

A rank whose cache overflows preempts a request and computes its context again, and all that run on its gang wait for
that. A request that is held instead waits until one that runs on the rank ends. Both are counted in steps that a
request loses, so nothing has to be known of seconds: holding pays when the chance to overflow is above

    (expected length / requests on the rank) / (BEGUN × context × PROMPT_TOKEN_STEPS × requests on the gang)

Where thoughts are short and a rank runs few, a preemption costs less than the wait that avoids it; with thousands of
tokens on ranks that step together it costs hundreds of times as much.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from r1_cluster.routing.survival import Floats

# A step's share that computing one more prompt token takes. A rank of R1 computes about 10,000 prompt tokens a second
# and steps in some 40 ms; the ratio is alike on slower ranks, where both take longer.
PROMPT_TOKEN_STEPS = 1 / 400

# How much worse a step is that is lost to a request that has begun: its reader sees it stop. By simulation, between
# fewer preemptions and waits (benchmarks/r1_bench/policies.py): 1 preempts a third more, 8 costs goodput.
BEGUN = 2.0

# Standard deviations above the mean. More than two hold more than they save.
MOST = 2.0
_DEVIATIONS: Floats = np.linspace(0.0, MOST, 41)
_LOG_STAKES: Floats = np.array([-np.log(1.0 - NormalDist().cdf(z)) for z in _DEVIATIONS])


def caution(prompt_tokens: float, likely_tokens: float, on_rank: Floats, on_gang: Floats) -> Floats:
    """By rank, how many standard deviations above its mean the forecast has to fit, 0 to ``MOST``: N by 1.

    ``likely_tokens``: what the request will generate, 0 where nobody knows; requests ``on_rank`` and ``on_gang``.
    """
    if likely_tokens <= 0:
        return np.full((len(on_rank), 1), MOST)
    context = prompt_tokens + likely_tokens / 2
    stakes = (BEGUN * PROMPT_TOKEN_STEPS * context / likely_tokens) * on_rank * on_gang
    deviations: Floats = np.interp(np.log(np.maximum(stakes, 1e-9)), _LOG_STAKES, _DEVIATIONS)
    return deviations[:, None]
