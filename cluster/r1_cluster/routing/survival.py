"""How long thoughts and answers last, learnt from those that ended and those that were cut short.

A histogram over logarithmic bins (about 19 % wide) of fixed size. Lengths that were cut off (a budget, max_tokens, a
client that left) are *censored*: they say only "at least this long", and count as such (Kaplan and Meier's estimator,
actuarial form). Old observations fade by a half-life counted in observations. Histograms of several routers merge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PER_OCTAVE = 4
OCTAVES = 20  # to about a million tokens
EDGES: Floats = np.concatenate(([0.0], 2.0 ** (np.arange(PER_OCTAVE * OCTAVES + 1) / PER_OCTAVE)))
BINS = len(EDGES) - 1
_REBASE = 1e12  # weights grow by the half-life; past this they are brought back


@lru_cache(maxsize=1 << 15)
def bin_of(length: int) -> int:
    """The bin that holds ``length`` tokens; lengths past the last edge count in the last bin."""
    if length < 0:
        raise ValueError(f"a length is {length}: tokens cannot be negative")
    if length < 1:
        return 0
    return min(BINS - 1, 1 + int(PER_OCTAVE * math.log2(length) + 1e-9))


class Histogram:
    """Ended and censored lengths. Memory is fixed: twice 81 numbers."""

    __slots__ = ("_censored", "_ended", "_growth", "_weight", "observations")

    def __init__(self, half_life: float = 2000.0) -> None:
        """``half_life``: after so many further observations one counts half."""
        if half_life <= 0:
            raise ValueError(f"half_life is {half_life}: give observations, above 0")
        self._ended = [0.0] * BINS  # one changes far more often than all are read: plain floats
        self._censored = [0.0] * BINS
        self._growth = 2.0 ** (1.0 / half_life)
        self._weight = 1.0  # of the next observation, instead of fading all earlier ones each time
        self.observations = 0

    def observe(self, length: int, *, censored: bool = False) -> None:
        """One length in tokens; ``censored``: it would have gone on."""
        self.count(bin_of(length), censored)

    def count(self, place: int, censored: bool) -> None:
        """One length by its bin."""
        if censored:
            self._censored[place] += self._weight
        else:
            self._ended[place] += self._weight
        self.observations += 1
        self._weight *= self._growth
        if self._weight > _REBASE:
            self._rebase()

    def merge(self, other: Histogram) -> None:
        """Take in what ``other`` has seen, each side as faded as it is."""
        self._rebase()
        self._ended = [a + b / other._weight for a, b in zip(self._ended, other._ended, strict=True)]
        self._censored = [a + b / other._weight for a, b in zip(self._censored, other._censored, strict=True)]
        self.observations += other.observations

    def hazards(self, prior: Floats, strength: float) -> Floats:
        """By bin, the chance to end in it once it is reached. ``prior`` counts as ``strength`` observations a bin."""
        ended, censored = np.array((self._ended, self._censored)) / self._weight
        reached = np.cumsum((ended + censored)[::-1])[::-1]
        at_risk = reached - censored / 2
        hazards: Floats = (ended + strength * prior) / (at_risk + strength)
        return hazards

    def _rebase(self) -> None:
        self._ended = [each / self._weight for each in self._ended]
        self._censored = [each / self._weight for each in self._censored]
        self._weight = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """``alive[i]`` is the chance to be at least ``EDGES[i]`` tokens long."""

    alive: Floats
    _known: dict[float, float] = field(default_factory=dict, repr=False)  # quantiles asked for before

    @classmethod
    def of(cls, hazards: Floats) -> Curve:
        alive = np.concatenate(([1.0], np.cumprod(1.0 - np.clip(hazards, 0.0, 1.0))))
        alive.flags.writeable = False
        return cls(alive)

    def survival(self, age: Floats | float, ahead: Floats | float) -> Floats:
        """The chance to go on for ``ahead`` more tokens, given that ``age`` tokens were not the end. Broadcasts."""
        begun, more = np.asarray(age, dtype=np.float64), np.asarray(ahead, dtype=np.float64)
        now: Floats = np.interp(begun, EDGES, self.alive, right=0.0)
        then: Floats = np.interp(begun + more, EDGES, self.alive, right=0.0)
        if np.count_nonzero(now) == now.size:
            alive: Floats = then / now
        else:  # Past all that was ever seen the next token is taken to be the last.
            unseen = np.where(more <= 0, 1.0, 0.0)
            alive = np.divide(then, now, out=unseen + 0.0 * then, where=now > 0)
        return np.minimum(alive, 1.0)

    def quantile(self, q: float, age: float = 0.0) -> float:
        """The length that a share ``q`` of those that reached ``age`` does not exceed, ``age`` included."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile is {q}: give 0 to 1")
        if age == 0.0 and q in self._known:
            return self._known[q]
        now = float(np.interp(age, EDGES, self.alive))
        wanted = now * (1.0 - q)
        found = max(age, float(np.interp(-wanted, -self.alive, EDGES)))
        if age == 0.0 and len(self._known) < 64:
            self._known[q] = found
        return found


def lognormal_hazards(median: float, sigma: float) -> Floats:
    """Hazards of a log-normal length: what is believed before anything was seen."""
    scaled = (np.log(np.maximum(EDGES, 0.5)) - math.log(median)) / (sigma * math.sqrt(2.0))
    alive = np.array([0.5 * math.erfc(float(x)) for x in scaled])
    alive[0] = 1.0
    kept: Floats = np.divide(alive[1:], alive[:-1], out=np.zeros(BINS), where=alive[:-1] > 1e-300)
    return 1.0 - kept
