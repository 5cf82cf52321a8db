"""What a policy sees: one request's demand and the ranks that serve its model, as columns.

A pick looks at tens of ranks with several numbers each: whole columns at a time cost a few microseconds, one rank at a
time some hundreds.
"""

from __future__ import annotations

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
    def kv_of_others(self) -> float:
        """KV tokens in use that this router does not know of: other routers' requests, taken to stay."""
        return max(0.0, self.kv_usage * self.kv_tokens - float(self.kv_ahead.mean[0]))


# Of each rank as numbers. ``seats``: requests that are given a seat, a few of them before it is free, so that none
# stays empty for the time of a message. ``takes``: those that the rank takes at all, waiting in its engine.
COLUMNS = (
    "max_num_seqs",
    "seats",
    "takes",
    "load",
    "kv_usage",
    "kv_tokens",
    "others",
    "draining",
    "last_pick",
    "gang",
    "gang_ranks",
)


class Fleet:
    """N ranks for one demand. ``numbers``: ``COLUMNS`` by N; ``ahead``: N by mean and variance by horizons, the KV
    forecast of what was placed. ``tops``: KV tokens and requests on the fullest ranks of each one's gang, 2 by N, where
    more of it is known than these ranks. Gangs are small numbers, -1 for a rank that has none or one to itself."""

    __slots__ = (
        *COLUMNS,
        "_now",
        "_peaks",
        "_tops",
        "ahead",
        "demand",
        "ranks",
    )
    max_num_seqs: Floats
    seats: Floats
    takes: Floats
    load: Floats
    kv_usage: Floats
    kv_tokens: Floats
    others: Floats
    draining: Floats
    last_pick: Floats
    gang: Floats
    gang_ranks: Floats

    def __init__(
        self,
        demand: Demand,
        ranks: Sequence[RankView],
        numbers: Floats,
        ahead: Floats,
        tops: Floats | None = None,
    ) -> None:
        self.demand, self.ranks, self.ahead = demand, ranks, ahead
        (
            self.max_num_seqs,
            self.seats,
            self.takes,
            self.load,
            self.kv_usage,
            self.kv_tokens,
            self.others,
            self.draining,
            self.last_pick,
            self.gang,
            self.gang_ranks,
        ) = numbers
        self._peaks: Floats | None = None
        self._tops = tops
        self._now: Floats | None = None

    @classmethod
    def of(cls, ranks: Sequence[RankView], demand: Demand) -> Fleet:
        """From views, in their order."""
        gangs: dict[str, int] = {}
        sizes = Counter(rank.gang_id for rank in ranks if rank.gang_id)
        rows = [
            (*numbers_of(r), gangs.setdefault(r.gang_id, len(gangs)) if r.gang_id else -1, sizes.get(r.gang_id, 1))
            for r in ranks
        ]
        return cls(
            demand,
            tuple(ranks),
            np.array(rows, dtype=np.float64).reshape(len(ranks), len(COLUMNS)).T,
            np.array([r.kv_ahead.both for r in ranks], dtype=np.float64).reshape(len(ranks), *NOTHING.both.shape),
        )

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def sized(self) -> bool:
        """Whether every rank has said how large its cache is."""
        return np.count_nonzero(self.kv_tokens) == len(self.ranks)

    @property
    def lone(self) -> bool:
        """Whether no rank shares its gang with another."""
        return bool(np.maximum.reduce(self.gang, initial=-1.0) < 0)

    @property
    def cached(self) -> Floats | None:
        """Prompt tokens each rank is believed to hold; None: nobody any."""
        held = self.demand.cached
        if not held:
            return None
        return np.array([held.get(rank.worker_id, 0) for rank in self.ranks], dtype=np.float64)

    @property
    def kv_now(self) -> Floats:
        """KV tokens in use, what was just sent included: what the rank's step time follows."""
        if self._now is None:
            self._now = np.maximum(self.kv_usage * self.kv_tokens, self.ahead[:, 0, 0])
        return self._now

    @property
    def kv_of_others(self) -> Floats:
        """KV tokens in use that this router does not know of: other routers' requests, taken to stay."""
        return self.kv_now - self.ahead[:, 0, 0]

    @property
    def tops_of_gang(self) -> Floats:
        """KV tokens and requests on the fullest ranks of each one's gang: each step of the gang takes as long as the
        slowest rank's."""
        if self._tops is None:
            both, gang = np.array((self.kv_now, self.load)), self.gang.astype(np.intp)
            top = np.zeros((2, int(gang.max(initial=-1)) + 2))  # the last place is that of -1
            np.maximum.at(top.T, gang, both.T)
            self._tops = np.where(gang < 0, both, top[:, gang])
        return self._tops

    @property
    def peak_with_demand(self) -> Floats:
        """KV tokens at the forecast worst, cautiously, with the demand on the rank."""
        if self._peaks is None:
            both, alive = self.ahead + self.demand.kv.both, self.demand.others_alive
            if alive is not None:
                both += forecast_of_others(self.kv_of_others, self.others, alive)
            above = both[:, 1]
            np.sqrt(above, out=above)
            above *= self._caution()
            above += both[:, 0]
            self._peaks = np.maximum.reduce(above, axis=1)
            if alive is None:
                self._peaks += self.kv_of_others
        return self._peaks

    def _caution(self) -> Floats | float:
        demand = self.demand
        deviations = caution(demand.prompt_tokens, demand.likely_tokens, self.load, self.load * self.gang_ranks)
        return deviations if isinstance(deviations, float) else deviations[:, None]


def numbers_of(rank: RankView) -> tuple[float, ...]:
    """A view's part of ``COLUMNS``, without the gang."""
    return (
        rank.max_num_seqs,
        rank.max_num_seqs + rank.max_num_seqs // 16,
        rank.max_num_seqs + rank.max_waiting_requests,
        rank.load,
        rank.kv_usage,
        rank.kv_tokens,
        rank.others,
        rank.draining,
        rank.last_pick,
    )
