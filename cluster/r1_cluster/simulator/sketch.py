"""Quantiles of any number of values in fixed memory: a histogram over logarithmic bins, 2 % wide."""

from __future__ import annotations

import math

GROWTH = 1.02
_SCALE = 1 / math.log(GROWTH)
_LEAST = 1e-6  # values below count as this
BINS = 1 + int(math.log(1e7 / _LEAST) * _SCALE)


class Sketch:
    """A quantile is within 1 % of the exact one. Values are not negative; those past 1e7 count as that."""

    __slots__ = ("_bins", "count", "total")

    def __init__(self) -> None:
        self._bins = [0] * BINS
        self.count = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        index = int(math.log(value / _LEAST) * _SCALE) if value > _LEAST else 0
        self._bins[index if index < BINS else BINS - 1] += 1
        self.count += 1
        self.total += value

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """None of nothing."""
        if not self.count:
            return None
        wanted, seen = q * self.count, 0
        for index, count in enumerate(self._bins):
            seen += count
            if count and seen >= wanted:
                return float(_LEAST * GROWTH ** (index + 0.5))
        raise AssertionError("the bins hold every value")

    def tail(self) -> list[tuple[float, float]]:
        """(value, share of what was added that is above it), at the bins that hold any."""
        points, left = [], self.count
        for index, count in enumerate(self._bins):
            if count:
                left -= count
                points.append((_LEAST * GROWTH ** (index + 1), left / self.count))
        return points

    def summary(self) -> dict[str, float | None]:
        """Seconds, or whatever was added."""
        named = {f"p{q}": self.quantile(q / 100) for q in (50, 90, 95, 99)}
        return {name: None if v is None else round(v, 6) for name, v in {"mean": self.mean, **named}.items()}
