"""Filter, score, pick. A policy is data: named filters, weighted scorers. Every choice says why it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from r1_cluster.routing.fleet import Demand, Fleet, RankView


@dataclass(frozen=True, slots=True)
class Filter:
    """``keeps(demand, rank, fleet)`` is whether the rank may take the request; ``name`` says what it lacks where not.

    ``advice``: it could take it, but the request had better wait. One that cannot wait goes there all the same.
    """

    name: str
    keeps: Callable[[Demand, RankView, Fleet], bool]
    advice: bool = False


@dataclass(frozen=True, slots=True)
class Scorer:
    """``score(demand, rank, fleet)`` in 0..1, higher is better."""

    name: str
    weight: float
    score: Callable[[Demand, RankView, Fleet], float]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was picked and why. ``rank`` is None where every rank was filtered out.

    ``scores``: for each rank that passed, each scorer's weighted points. ``excluded``: for the others, the filter.
    """

    rank: RankView | None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)

    def explain(self) -> str:
        """One line for a log or a debug header."""
        parts = [
            f"{worker_id}={sum(points.values()):.3f} ({', '.join(f'{name} {p:.3f}' for name, p in points.items())})"
            for worker_id, points in self.scores.items()
        ]
        parts += [f"{worker_id} out: {name}" for worker_id, name in self.excluded.items()]
        picked = self.rank.worker_id if self.rank else "none"
        return f"picked {picked}; " + ("; ".join(parts) or "no ranks")


@dataclass(frozen=True, slots=True)
class Policy:
    """``margin``: ranks whose score is this close to the best count as equals."""

    name: str
    filters: tuple[Filter, ...]
    scorers: tuple[Scorer, ...]
    margin: float = 0.0

    def choose(self, demand: Demand, ranks: Sequence[RankView], *, waits: bool = True) -> Choice:
        """Pick the best-scored rank that passes every filter; among equals the one picked longest ago.

        ``waits=False``: the request was promised a place (it has begun already), so where no rank passes, filters that
        are advice do not count.
        """
        fleet = Fleet(ranks, demand)
        choice = self._choose(demand, fleet, self.filters)
        if choice.rank is None and not waits:
            return self._choose(demand, fleet, tuple(f for f in self.filters if not f.advice))
        return choice

    def _choose(self, demand: Demand, fleet: Fleet, filters: tuple[Filter, ...]) -> Choice:
        scores: dict[str, dict[str, float]] = {}
        excluded: dict[str, str] = {}
        passed: list[tuple[float, RankView]] = []
        for rank in fleet.ranks:
            missing = next((f.name for f in filters if not f.keeps(demand, rank, fleet)), None)
            if missing is not None:
                excluded[rank.worker_id] = missing
                continue
            points = {s.name: s.weight * s.score(demand, rank, fleet) for s in self.scorers}
            scores[rank.worker_id] = points
            passed.append((sum(points.values()), rank))
        if not passed:
            return Choice(None, scores, excluded)
        enough = max(score for score, _ in passed) - self.margin
        equals = (rank for score, rank in passed if score >= enough)
        return Choice(min(equals, key=lambda rank: (rank.last_pick, rank.worker_id)), scores, excluded)
