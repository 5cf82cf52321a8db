"""How much of the prompts a fleet's prefix caches hold, each in what its KV cache has free, the oldest forgotten first.

Che's approximation of a least-recently-used cache (Che, Tung, Wang 2002): what is asked for again within the next T
requests is still there, and T is such that all that is there just fits. A class of share a, whose prompts begin in one
of G ways, brings each of them T a / G times in that time; one that was there before is with probability
1 - exp(-T a / G) still there. A beginning is held as long as the longest prompt that brought it; a hit is the shorter
of that and the prompt's own. ``AFFINE`` of the fleet's free KV counts as one cache: the router sends a prompt where its
beginning is, unless that rank has more to do than others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r1_cluster.workload import Workload

Floats = NDArray[np.float64]
AFFINE = 0.6  # as simulated with the router's own code on fleets of 1 to 8 ranks (docs/planning.md)
POINTS = 64  # quantiles of a beginning's length
WINDOWS = np.geomspace(1, 1e7, 200)  # T, in requests


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """``hits``: tokens of a mean prompt that are found where the fleet has ``room`` tokens for beginnings."""

    room: Floats
    hits: Floats

    @classmethod
    def of(cls, workload: Workload) -> PrefixCache:
        room, hits = np.zeros(len(WINDOWS)), np.zeros(len(WINDOWS))
        for share, each in zip(workload.shares, workload.classes, strict=True):
            lengths = np.array([each.prompt_tokens.quantile(q) for q in (np.arange(POINTS) + 0.5) / POINTS])
            steps = np.diff(lengths * each.prefix_share, prepend=0.0)
            longer = 1 - np.arange(POINTS) / POINTS  # the share of beginnings that reach each step
            seen = WINDOWS * share / each.prefix_groups
            there = 1 - np.exp(-seen)
            reached = 1 - (1 - longer)[None, :] ** np.maximum(1.0, seen)[:, None]  # by the longest of those seen
            room += each.prefix_groups * there * (reached @ steps)
            hits += share * there * (reached @ (longer * steps))
        return cls(np.concatenate(([0.0], room)), np.concatenate(([0.0], hits)))

    def found(self, room: float) -> float:
        """Tokens of a mean prompt that need not be computed, where ``room`` tokens are free in all."""
        return float(np.interp(AFFINE * room, self.room, self.hits))
