"""What policies are made of: filters and scorers by name. Each is a few lines, and says in what it believes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from r1_cluster.routing.fleet import DRAINING, FEW, FREE, KV_NOW, KV_ROOM, KV_TOKENS, LOAD, SEATS, TAKES, Fleet
from r1_cluster.routing.policy import Bools, Filter
from r1_cluster.routing.survival import Floats


def not_draining(fleet: Fleet) -> Bools:
    kept: Bools = fleet.numbers[DRAINING] == 0
    return kept


def room(fleet: Fleet) -> Bools:
    """A rank takes what it runs and its queue, and no more."""
    kept: Bools = fleet.numbers[LOAD] < fleet.numbers[TAKES]
    return kept


def seat(fleet: Fleet) -> Bools:
    """A seat in the running batch: what would wait in an engine waits in the router instead, where it can still go
    anywhere and in a fair order. Only where no rank has one may a few wait in the engines: beside ranks with free seats
    they would wait there for a thought to end."""
    free: Bools = fleet.numbers[FEW] > 0.5
    if np.count_nonzero(free):
        return free
    kept: Bools = fleet.numbers[LOAD] < fleet.numbers[SEATS]
    return kept


def kv_room(fleet: Fleet) -> Bools:
    """Whether the rank's forecast KV stays within its cache with this request on it. An empty rank takes anything."""
    kept: Bools = fleet.peak_with_demand <= fleet.numbers[KV_ROOM]
    return kept


def few_requests(fleet: Fleet) -> Floats:
    few: Floats = fleet.numbers[FEW]
    return few


def free_kv(fleet: Fleet) -> Floats:
    """By the rank's own report, which lags."""
    free: Floats = fleet.numbers[FREE]
    return free


def kv_ahead(fleet: Fleet) -> Floats:
    """The share of its cache the rank would keep free at its forecast worst moment."""
    share = _share(fleet.peak_with_demand, fleet, otherwise=1.0)
    np.subtract(1.0, share, out=share)
    return np.maximum(share, 0.0, out=share)


def level(fleet: Fleet) -> Floats:
    """How far the rank lies below the fullest of its gang: a request there slows nobody, because the gang steps at the
    pace of its slowest rank. Which is that depends on KV read and on sequences computed: half by KV as a share of the
    cache, half by requests."""
    if fleet.tops is None:
        return np.zeros(len(fleet))
    kv, load = fleet.tops
    by_kv = np.minimum(1.0, _share(kv - fleet.numbers[KV_NOW], fleet, otherwise=0.0))
    by_load: Floats = (load - fleet.numbers[LOAD]) / np.maximum(1.0, load)
    return (by_kv + by_load) / 2


def prefix(fleet: Fleet) -> Floats:
    """The share of the prompt that need not be computed again."""
    cached = fleet.cached
    if cached is None or not fleet.demand.prompt_tokens:
        return np.zeros(len(fleet))
    return np.minimum(1.0, cached / fleet.demand.prompt_tokens)


def _share(part: Floats, fleet: Fleet, *, otherwise: float) -> Floats:
    """Of the rank's cache, and ``otherwise`` where that is not known."""
    whole = fleet.numbers[KV_TOKENS]
    if np.count_nonzero(whole) == len(whole):
        known: Floats = part / whole
        return known
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
