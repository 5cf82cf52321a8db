"""What a policy sees: one request's demand and the ranks that serve its model, as columns.

A pick looks at tens of ranks with several numbers each: whole columns at a time cost a few microseconds, one rank at a
time some hundreds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from r1_cluster.routing.caution import caution
from r1_cluster.routing.kv import NOTHING, KvForecast, forecast_of_others
from r1_cluster.routing.survival import Floats


class Demand(NamedTuple):
    """What a request will ask of a rank, in tokens. ``max_tokens`` is an upper bound, thinking included.

    ``cached``: for each rank that has any, how much of the prompt's start it is believed to hold. ``kv``: what the
    request will hold over the next minutes. ``likely_tokens``: what it will generate, 0 where nobody knows.
    ``others_alive``: the chance that another router's request goes on, at each horizon; None: taken to stay as it is.
    """

    prompt_tokens: int
    max_tokens: int
    cached: Mapping[str, int] = MappingProxyType({})
    kv: KvForecast = NOTHING
    likely_tokens: float = 0.0
    others_alive: Floats | None = None


@dataclass(frozen=True, slots=True)
class RankView:
    """One attached rank at one moment.

    ``in_flight`` is what this router has on it and is exact, ``others`` what other routers have; ``running`` and
    ``waiting`` are the rank's own report for all routers, as of its last frame. ``last_pick`` is the number of the last
    request sent to it, 0 for none. ``kv_ahead`` is the forecast of what this router has placed on it; ``kv_usage`` is a
    share of ``kv_tokens``, of all routers. The cache is given out in blocks of ``block_tokens``. Ranks of one gang step
    together.
    """

    worker_id: str
    max_num_seqs: int
    max_waiting_requests: int
    in_flight: int = 0
    others: int = 0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    kv_tokens: int = 0
    block_tokens: int = 1
    step_time_s: float = 0.0
    draining: bool = False
    last_pick: int = 0
    gang_id: str = ""
    kv_ahead: KvForecast = NOTHING

    @property
    def load(self) -> int:
        """Requests on the rank. A report lags behind what was just sent, so the larger of the two counts."""
        return max(self.in_flight, self.running + self.waiting)

    @property
    def seats(self) -> int:
        """Requests that are given a seat: a few of them before it is free, so that none stays empty for the time of a
        message."""
        return self.max_num_seqs + self.max_num_seqs // 16

    @property
    def takes(self) -> int:
        """Requests that the rank takes at all, waiting in its engine."""
        return self.max_num_seqs + self.max_waiting_requests

    @property
    def kv_of_others(self) -> float:
        """KV tokens in use that this router does not know of: other routers' requests, taken to stay."""
        return max(0.0, self.kv_usage * self.kv_tokens - float(self.kv_ahead.mean[0]))


class Numbers(NamedTuple):
    """What a policy reads of each rank: a column of a Fleet each. KV in tokens.

    ``seats`` and ``takes`` are the view's. ``kv_room``: what its forecast must stay within; no limit for a rank that is
    empty or has not said how large its cache is. ``kv_now``: in use, what was just sent included: what the rank's step
    time follows. ``kv_of_others``: the part of it that this router does not know of. ``others``: requests of other
    routers. ``gang``: a small number; ``gang_ranks``: ranks that step together.
    """

    draining: float
    last_pick: float
    gang: float
    gang_ranks: float
    others: float
    seats: float
    takes: float
    kv_tokens: float
    load: float
    few: float  # 1 for an empty rank, a half for one with as many requests as seats
    free: float  # the share of its cache, by its own report
    kv_room: float
    kv_now: float
    kv_of_others: float


(
    DRAINING,
    LAST_PICK,
    GANG,
    GANG_RANKS,
    OTHERS,
    SEATS,
    TAKES,
    KV_TOKENS,
    LOAD,
    FEW,
    FREE,
    KV_ROOM,
    KV_NOW,
    KV_OF_OTHERS,
) = range(14)


def numbers_of(rank: RankView, gang: int, gang_ranks: int) -> Numbers:
    held = rank.kv_ahead.both.item(0, 0)
    now = max(rank.kv_usage * rank.kv_tokens, held)
    return Numbers(
        draining=rank.draining,
        last_pick=rank.last_pick,
        gang=gang,
        gang_ranks=gang_ranks,
        others=rank.others,
        seats=rank.seats,
        takes=rank.takes,
        kv_tokens=rank.kv_tokens,
        load=rank.load,
        few=1.0 / (1.0 + rank.load / rank.max_num_seqs),
        free=1.0 - min(1.0, rank.kv_usage),
        kv_room=rank.kv_tokens if rank.load and rank.kv_tokens else math.inf,
        kv_now=now,
        kv_of_others=now - held,
    )


class Fleet:
    """N ranks for one demand. ``numbers``: ``Numbers`` by N; ``ahead``: N by mean and variance by horizons, the KV
    forecast of what was placed; ``tops``: KV in use and requests on the fullest ranks of each one's gang, which steps
    at their pace, 2 by N; None where no gang has several."""

    __slots__ = ("_peaks", "ahead", "demand", "numbers", "ranks", "tops")

    def __init__(
        self, demand: Demand, ranks: Sequence[RankView], numbers: Floats, ahead: Floats, tops: Floats | None
    ) -> None:
        self.demand, self.ranks, self.numbers, self.ahead, self.tops = demand, ranks, numbers, ahead, tops
        self._peaks: Floats | None = None

    @classmethod
    def of(cls, ranks: Sequence[RankView], demand: Demand) -> Fleet:
        """From views, in their order."""
        gangs: dict[str, int] = {}
        names = [rank.gang_id or f"alone {i}" for i, rank in enumerate(ranks)]
        sizes = Counter(names)
        rows = [numbers_of(r, gangs.setdefault(g, len(gangs)), sizes[g]) for r, g in zip(ranks, names, strict=True)]
        numbers = np.array(rows, dtype=np.float64).reshape(len(ranks), len(Numbers._fields)).T
        top = np.zeros((len(gangs), 2))
        gang = numbers[GANG].astype(np.intp)
        np.maximum.at(top, gang, numbers[[KV_NOW, LOAD]].T)
        ahead = np.array([r.kv_ahead.both for r in ranks], dtype=np.float64).reshape(len(ranks), *NOTHING.both.shape)
        return cls(demand, tuple(ranks), numbers, ahead, top[gang].T)

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def cached(self) -> Floats | None:
        """Prompt tokens each rank is believed to hold; None: nobody any."""
        held = self.demand.cached
        if not held:
            return None
        return np.array([held.get(rank.worker_id, 0) for rank in self.ranks], dtype=np.float64)

    @property
    def peak_with_demand(self) -> Floats:
        """KV tokens at the forecast worst, cautiously, with the demand on the rank."""
        if self._peaks is None:
            demand, numbers = self.demand, self.numbers
            both, alive = self.ahead + demand.kv.both, demand.others_alive
            if alive is not None:
                both += forecast_of_others(numbers[KV_OF_OTHERS], numbers[OTHERS], alive)
            above = both[:, 1]
            np.sqrt(above, out=above)
            load = numbers[LOAD]
            above *= caution(demand.prompt_tokens, demand.likely_tokens, load, load * numbers[GANG_RANKS])
            above += both[:, 0]
            self._peaks = np.maximum.reduce(above, axis=1)
            if alive is None:
                self._peaks += numbers[KV_OF_OTHERS]
        return self._peaks
