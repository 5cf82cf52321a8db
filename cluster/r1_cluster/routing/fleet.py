"""What a policy sees: one request's demand and a snapshot of the ranks that serve its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from r1_cluster.routing.kv import NOTHING, KvForecast

# A rank is full for a new thought when its forecast, so many standard deviations above the mean, passes its cache. With
# 1 a sixth of the fillings overflow, and every overflow costs a thought its whole context; 3 holds more than it saves
# (benchmarks/r1_bench/policies.py).
CAUTION = 2.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request will ask of a rank, in tokens. ``max_tokens`` is an upper bound, thinking included.

    ``cached``: for each rank that has any, how much of the prompt's start it is believed to hold. ``kv``: what the
    request will hold over the next minutes.
    """

    prompt_tokens: int
    max_tokens: int
    cached: Mapping[str, int] = field(default_factory=dict)
    kv: KvForecast = NOTHING


@dataclass(frozen=True, slots=True)
class RankView:
    """One attached rank at one moment.

    ``in_flight`` is what this router has on it and is exact; ``running`` and ``waiting`` are the rank's own report for
    all routers, as of its last frame. ``last_pick`` is the number of the last request sent to it, 0 for none.
    ``kv_ahead`` is the forecast of what this router has placed on it; ``kv_usage`` is a share of ``kv_tokens``, of all
    routers. Ranks of one gang step together.
    """

    worker_id: str
    max_num_seqs: int
    max_waiting_requests: int
    in_flight: int = 0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    kv_tokens: int = 0
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
        return max(0.0, self.kv_usage * self.kv_tokens - self.kv_ahead.mean[0])

    @property
    def kv_now(self) -> float:
        """KV tokens in use, what was just sent included: what the rank's step time follows."""
        return self.kv_of_others + self.kv_ahead.mean[0]


class Fleet:
    """A snapshot of the ranks for one demand: what takes more than one of them to know, or is asked twice."""

    __slots__ = ("_demand", "_heaviest", "_peaks", "ranks")

    def __init__(self, ranks: Sequence[RankView], demand: Demand) -> None:
        self.ranks = tuple(ranks)
        self._demand = demand
        self._peaks: dict[str, float] = {}
        self._heaviest: dict[str, float] = {}
        for rank in self.ranks:
            if rank.gang_id:
                self._heaviest[rank.gang_id] = max(self._heaviest.get(rank.gang_id, 0.0), rank.kv_now)

    def heaviest_of_gang(self, rank: RankView) -> float:
        """KV tokens on the fullest rank of its gang: each step of the gang takes as long as that one's."""
        return self._heaviest.get(rank.gang_id, rank.kv_now)

    def peak_with(self, rank: RankView) -> float:
        """The rank's KV tokens at their forecast worst, cautiously, with the demand on it."""
        peak = self._peaks.get(rank.worker_id)
        if peak is None:
            peak = rank.kv_ahead.peak_with(self._demand.kv, CAUTION, shift=rank.kv_of_others)
            self._peaks[rank.worker_id] = peak
        return peak
