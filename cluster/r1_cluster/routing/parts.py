"""What policies are made of: filters and scorers by name. Each is a few lines, and says in what it believes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from r1_cluster.routing.fleet import Demand, Fleet, RankView
from r1_cluster.routing.policy import Filter


def not_draining(_: Demand, rank: RankView, __: Fleet) -> bool:
    return not rank.draining


def room(_: Demand, rank: RankView, __: Fleet) -> bool:
    """A rank takes what it runs and its queue, and no more."""
    return rank.load < rank.max_num_seqs + rank.max_waiting_requests


def seat(_: Demand, rank: RankView, __: Fleet) -> bool:
    """A seat in the running batch: what would wait in an engine waits in the router instead, where it can still go
    anywhere and in a fair order. A sixteenth more may wait in the engine, so that no seat stays empty for the time of a
    message."""
    return rank.load < rank.max_num_seqs + rank.max_num_seqs // 16


def kv_room(_: Demand, rank: RankView, fleet: Fleet) -> bool:
    """Whether the rank's forecast KV stays within its cache with this request on it. An empty rank takes anything."""
    if rank.load == 0 or rank.kv_tokens == 0:
        return True
    return fleet.peak_with(rank) <= rank.kv_tokens


def few_requests(_: Demand, rank: RankView, __: Fleet) -> float:
    return 1.0 / (1.0 + rank.load / rank.max_num_seqs)


def free_kv(_: Demand, rank: RankView, __: Fleet) -> float:
    """By the rank's own report, which lags."""
    return 1.0 - min(1.0, rank.kv_usage)


def kv_ahead(_: Demand, rank: RankView, fleet: Fleet) -> float:
    """The share of its cache the rank would keep free at its forecast worst moment."""
    return max(0.0, 1.0 - fleet.peak_with(rank) / rank.kv_tokens) if rank.kv_tokens else 0.0


def level(_: Demand, rank: RankView, fleet: Fleet) -> float:
    """How far the rank lies below the fullest of its gang, as a share of its cache: a request there slows nobody,
    because the gang steps at the pace of its fullest rank."""
    if rank.kv_tokens == 0:
        return 0.0
    return min(1.0, (fleet.heaviest_of_gang(rank) - rank.kv_now) / rank.kv_tokens)


def prefix(demand: Demand, rank: RankView, _: Fleet) -> float:
    """The share of the prompt that need not be computed again."""
    return min(1.0, demand.cached.get(rank.worker_id, 0) / demand.prompt_tokens) if demand.prompt_tokens else 0.0


FILTERS: Mapping[str, Filter] = {
    f.name: f
    for f in (
        Filter("draining", not_draining),
        Filter("full", room),
        Filter("no seat", seat, advice=True),
        Filter("kv forecast", kv_room, advice=True),
    )
}

SCORERS: Mapping[str, Callable[[Demand, RankView, Fleet], float]] = {
    "few requests": few_requests,
    "free KV": free_kv,
    "kv ahead": kv_ahead,
    "level": level,
    "prefix": prefix,
}
