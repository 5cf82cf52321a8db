"""What policies are made of: filters and scorers by name. Each is a few lines, and says in what it believes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from r1_cluster.routing.fleet import Fleet
from r1_cluster.routing.policy import Bools, Filter
from r1_cluster.routing.survival import Floats


def not_draining(fleet: Fleet) -> Bools:
    kept: Bools = fleet.draining == 0
    return kept


def room(fleet: Fleet) -> Bools:
    """A rank takes what it runs and its queue, and no more."""
    return fleet.load < fleet.max_num_seqs + fleet.max_waiting_requests


def seat(fleet: Fleet) -> Bools:
    """A seat in the running batch: what would wait in an engine waits in the router instead, where it can still go
    anywhere and in a fair order. Where no rank has one, a sixteenth more may wait in the engines, so that no seat stays
    empty for the time of a message; before that it would wait for a thought to end beside ranks with seats."""
    free: Bools = fleet.load < fleet.max_num_seqs
    return free if free.any() else fleet.load < fleet.max_num_seqs + fleet.max_num_seqs // 16


def kv_room(fleet: Fleet) -> Bools:
    """Whether the rank's forecast KV stays within its cache with this request on it. An empty rank takes anything."""
    takes: Bools = (fleet.peak_with_demand <= fleet.kv_tokens) | (fleet.load == 0) | (fleet.kv_tokens == 0)
    return takes


def few_requests(fleet: Fleet) -> Floats:
    return 1.0 / (1.0 + fleet.load / fleet.max_num_seqs)


def free_kv(fleet: Fleet) -> Floats:
    """By the rank's own report, which lags."""
    return 1.0 - np.minimum(1.0, fleet.kv_usage)


def kv_ahead(fleet: Fleet) -> Floats:
    """The share of its cache the rank would keep free at its forecast worst moment."""
    return np.maximum(0.0, 1.0 - _share(fleet.peak_with_demand, fleet.kv_tokens, otherwise=1.0))


def level(fleet: Fleet) -> Floats:
    """How far the rank lies below the fullest of its gang, as a share of its cache: a request there slows nobody,
    because the gang steps at the pace of its fullest rank."""
    return np.minimum(1.0, _share(fleet.heaviest_of_gang - fleet.kv_now, fleet.kv_tokens, otherwise=0.0))


def prefix(fleet: Fleet) -> Floats:
    """The share of the prompt that need not be computed again."""
    cached = fleet.cached
    if cached is None or not fleet.demand.prompt_tokens:
        return np.zeros(len(fleet))
    return np.minimum(1.0, cached / fleet.demand.prompt_tokens)


def _share(part: Floats, whole: Floats, *, otherwise: float) -> Floats:
    """part / whole, and ``otherwise`` where there is no whole."""
    if whole.all():
        return part / whole
    share: Floats = np.divide(part, whole, out=np.full(len(whole), otherwise), where=whole != 0)
    return share


FILTERS: Mapping[str, Filter] = {
    f.name: f
    for f in (
        Filter("draining", not_draining),
        Filter("full", room),
        Filter("no seat", seat, advice=True),
        Filter("kv forecast", kv_room, advice=True),
    )
}

SCORERS: Mapping[str, Callable[[Fleet], Floats]] = {
    "few requests": few_requests,
    "free KV": free_kv,
    "kv ahead": kv_ahead,
    "level": level,
    "prefix": prefix,
}
