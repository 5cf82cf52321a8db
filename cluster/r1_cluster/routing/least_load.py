"""The simplest policy that holds up: the rank with the fewest requests for its size, then the one with more free KV."""

from __future__ import annotations

from r1_cluster.routing.policy import Filter, Policy, Scorer

NOT_DRAINING = Filter("draining", lambda _, rank: not rank.draining)
ROOM = Filter("full", lambda _, rank: rank.load < rank.max_num_seqs + rank.max_waiting_requests)


def least_load() -> Policy:
    """Requests count in hundredfold of free KV: the KV report of a rank lags, the count does not."""
    return Policy(
        name="least_load",
        filters=(NOT_DRAINING, ROOM),
        scorers=(
            Scorer("few requests", 1.0, lambda _, rank: 1.0 / (1.0 + rank.load / rank.max_num_seqs)),
            Scorer("free KV", 0.01, lambda _, rank: 1.0 - rank.kv_usage),
        ),
    )
