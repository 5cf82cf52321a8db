"""Distributions of lengths in tokens. Frozen values with a mean, quantiles and samples, each closed under a limit."""

from __future__ import annotations

import bisect
import math
from statistics import NormalDist
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Integers = NDArray[np.int64]
_NORMAL = NormalDist()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Fixed(_Frozen):
    """Always ``tokens``."""

    kind: Literal["fixed"] = "fixed"
    tokens: int = Field(ge=0)

    def mean(self) -> float:
        return float(self.tokens)

    def quantile(self, q: float) -> float:
        _checked(q)
        return float(self.tokens)

    def above(self, limit: float) -> float:
        return float(self.tokens > limit)

    def censored(self, limit: int | None) -> Fixed:
        return self if limit is None else Fixed(tokens=min(self.tokens, limit))

    def sample(self, rng: np.random.Generator, n: int) -> Integers:
        return np.full(n, self.tokens, dtype=np.int64)


class LogNormal(_Frozen):
    """exp(Normal(ln ``median``, ``sigma``)), cut to ``low``..``high``: what lies outside counts at the limit."""

    kind: Literal["lognormal"] = "lognormal"
    median: float = Field(gt=0, allow_inf_nan=False)
    sigma: float = Field(gt=0, le=5)
    low: int = Field(default=1, ge=0)
    high: int = Field(default=131_072, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    def mean(self) -> float:
        """E[min(max(X, low), high)], by the partial moments of the log-normal."""
        return self._below(self.high) + (self.low * self._cdf(self.low) - self._part(self.low) if self.low else 0.0)

    def quantile(self, q: float) -> float:
        _checked(q)
        if q in (0.0, 1.0):
            return float(self.high if q else self.low)
        return min(max(self.median * math.exp(self.sigma * _NORMAL.inv_cdf(q)), self.low), self.high)

    def above(self, limit: float) -> float:
        """The share longer than ``limit``."""
        return 0.0 if limit >= self.high else 1.0 if limit < self.low else 1.0 - self._cdf(limit)

    def censored(self, limit: int | None) -> LogNormal:
        """As cut off at ``limit``: what would have gone on counts there. None: as it is."""
        if limit is None or limit >= self.high:
            return self
        return self.model_copy(update={"high": limit, "low": min(self.low, limit)})

    def sample(self, rng: np.random.Generator, n: int) -> Integers:
        drawn = self.median * np.exp(self.sigma * rng.standard_normal(n))
        return np.rint(np.clip(drawn, self.low, self.high)).astype(np.int64)

    def _cdf(self, x: float) -> float:
        return _NORMAL.cdf(math.log(x / self.median) / self.sigma) if x > 0 else 0.0

    def _part(self, x: float) -> float:
        """E[X; X < x]"""
        whole = self.median * math.exp(self.sigma**2 / 2)
        return whole * _NORMAL.cdf(math.log(x / self.median) / self.sigma - self.sigma) if x > 0 else 0.0

    def _below(self, x: float) -> float:
        """E[min(X, x)]"""
        return self._part(x) + x * (1.0 - self._cdf(x))


class Empirical(_Frozen):
    """``knots`` are quantiles at equal steps of probability from 0 to 1, linear between: what a trace says."""

    kind: Literal["empirical"] = "empirical"
    knots: tuple[float, ...] = Field(min_length=2)
    high: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.knots[0] < 0 or any(b < a for a, b in zip(self.knots, self.knots[1:], strict=False)):
            raise ValueError("knots are quantiles: from 0 up, none below the one before")
        return self

    def mean(self) -> float:
        return sum(map(self._piece, self.knots, self.knots[1:])) / (len(self.knots) - 1)

    def quantile(self, q: float) -> float:
        _checked(q)
        at = q * (len(self.knots) - 1)
        left = min(int(at), len(self.knots) - 2)
        value = self.knots[left] + (at - left) * (self.knots[left + 1] - self.knots[left])
        return value if self.high is None else min(value, self.high)

    def above(self, limit: float) -> float:
        """The share longer than ``limit``."""
        knots = self.knots
        if limit >= knots[-1] or (self.high is not None and limit >= self.high):
            return 0.0
        if limit < knots[0]:
            return 1.0
        left = bisect.bisect_right(knots, limit) - 1
        within = (limit - knots[left]) / (knots[left + 1] - knots[left])
        return 1.0 - (left + within) / (len(knots) - 1)

    def censored(self, limit: int | None) -> Empirical:
        if limit is None or (self.high is not None and limit >= self.high):
            return self
        return self.model_copy(update={"high": limit})

    def sample(self, rng: np.random.Generator, n: int) -> Integers:
        at = rng.random(n) * (len(self.knots) - 1)
        drawn = np.interp(at, np.arange(len(self.knots)), self.knots)
        return np.rint(drawn if self.high is None else np.minimum(drawn, self.high)).astype(np.int64)

    def _piece(self, a: float, b: float) -> float:
        """The mean of the line from a to b, cut at ``high``."""
        top = self.high
        if top is None or b <= top:
            return (a + b) / 2
        if a >= top:
            return float(top)
        under = (top - a) / (b - a)
        return under * (a + top) / 2 + (1 - under) * top

    @classmethod
    def of(cls, lengths: Integers, steps: int = 400) -> Empirical:
        """Of observed lengths. Raises ValueError where there is none."""
        if len(lengths) == 0:
            raise ValueError("no lengths to fit a distribution to")
        return cls(knots=tuple(np.quantile(lengths, np.linspace(0, 1, steps + 1)).tolist()))


Lengths = Annotated[Fixed | LogNormal | Empirical, Field(discriminator="kind")]


def _checked(q: float) -> None:
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"a quantile is {q}: give 0 to 1")
