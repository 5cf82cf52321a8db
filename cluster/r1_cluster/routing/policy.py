"""Filter, score, pick. A policy is data: named filters, weighted scorers. Every choice says why it was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add, and_
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from r1_cluster.routing.fleet import LAST_PICK, Demand, Fleet, RankView
from r1_cluster.routing.survival import Floats

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Filter:
    """``keeps(fleet)`` is for each rank whether it may take the request; ``name`` says what it lacks where not.

    ``advice``: it could take it, but the request had better wait. One that cannot wait goes there all the same.
    """

    name: str
    keeps: Callable[[Fleet], Bools]
    advice: bool = False


@dataclass(frozen=True, slots=True)
class Scorer:
    """``score(fleet)`` for each rank in 0..1, higher is better."""

    name: str
    weight: float
    score: Callable[[Fleet], Floats]


class Choice(NamedTuple):
    """What was picked and why. ``rank`` is None where every rank was filtered out.

    ``kept`` and ``points`` are each filter's and scorer's columns: they become words when somebody asks.
    """

    rank: RankView | None
    ranks: Sequence[RankView] = ()
    kept: Mapping[str, Bools] | None = None
    points: Mapping[str, Floats] | None = None

    @property
    def excluded(self) -> dict[str, str]:
        """For each rank that was filtered out, the first filter that did."""
        columns = {name: kept.tolist() for name, kept in (self.kept or {}).items()}
        missing = ((r, next((n for n, kept in columns.items() if not kept[i]), None)) for i, r in enumerate(self.ranks))
        return {rank.worker_id: name for rank, name in missing if name is not None}

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """For each rank that passed, each scorer's weighted points."""
        out = self.excluded
        columns = {name: points.tolist() for name, points in (self.points or {}).items()}
        return {
            rank.worker_id: {name: points[i] for name, points in columns.items()}
            for i, rank in enumerate(self.ranks)
            if rank.worker_id not in out
        }

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
        """As ``pick``, from views."""
        return self.pick(Fleet.of(ranks, demand), waits=waits)

    def pick(self, fleet: Fleet, *, waits: bool = True) -> Choice:
        """Pick the best-scored rank that passes every filter; among equals the one picked longest ago.

        ``waits=False``: the request was promised a place (it has begun already), so where no rank passes, filters that
        are advice do not count.
        """
        choice = self._pick(fleet, self.filters)
        if choice.rank is None and not waits:
            return self._pick(fleet, tuple(f for f in self.filters if not f.advice))
        return choice

    def _pick(self, fleet: Fleet, filters: tuple[Filter, ...]) -> Choice:
        ranks = fleet.ranks
        if not ranks:
            return Choice(None)
        kept = {f.name: f.keeps(fleet) for f in filters}
        points = {s.name: s.score(fleet) if s.weight == 1.0 else s.weight * s.score(fleet) for s in self.scorers}
        # As plain numbers where that is less: a dozen comparisons cost less than a call that does them all.
        scores = reduce(add, points.values()).tolist() if points else [0.0] * len(ranks)
        passed = reduce(and_, kept.values()).tolist() if kept else [True] * len(ranks)
        if False in passed:
            scores = [score if ok else -math.inf for score, ok in zip(scores, passed, strict=True)]
            if True not in passed:
                return Choice(None, ranks, kept)
        least = max(scores) - self.margin
        equals = [index for index, score in enumerate(scores) if score >= least]
        best = equals[0]
        if len(equals) > 1:
            picks = fleet.numbers[LAST_PICK].tolist()
            best = min(equals, key=lambda i: (picks[i], ranks[i].worker_id))
        return Choice(ranks[best], ranks, kept, points)
