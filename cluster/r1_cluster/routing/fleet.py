"""What a policy sees: one request's demand and a snapshot of the ranks that serve its model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request will ask of a rank, in tokens. ``max_tokens`` is an upper bound, thinking included."""

    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class RankView:
    """One attached rank at one moment.

    ``in_flight`` is what this router has on it and is exact; ``running`` and ``waiting`` are the rank's own report for
    all routers, as of its last frame. ``last_pick`` is the number of the last request sent to it, 0 for none.
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

    @property
    def load(self) -> int:
        """Requests on the rank. A report lags behind what was just sent, so the larger of the two counts."""
        return max(self.in_flight, self.running + self.waiting)
