"""When requests come. ``rate`` is the mean in requests/s (None: a closed loop); ``times`` never ends, but a Trace's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

CHUNK = 4096  # drawn at once
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Open(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rate: Rate

    def at_rate(self, rate: float) -> Self:
        """The same pattern, so many requests/s in the mean."""
        return type(self).model_validate({**self.model_dump(), "rate": rate})

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        """Seconds from the start, in order."""
        at = 0.0
        while True:
            chunk = at + np.cumsum(self._gaps(rng))
            at = float(chunk[-1])
            yield from chunk.tolist()

    def _gaps(self, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
        raise NotImplementedError


class Poisson(_Open):
    """Independent users."""

    kind: Literal["poisson"] = "poisson"

    def _gaps(self, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
        return rng.exponential(1 / self.rate, CHUNK)


class Bursty(_Open):
    """Gamma-distributed gaps with coefficient of variation ``cv``: 1 is Poisson, above it requests come in clumps."""

    kind: Literal["bursty"] = "bursty"
    cv: float = Field(default=2.0, gt=0, le=20)

    def _gaps(self, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
        shape = 1 / self.cv**2
        return rng.gamma(shape, 1 / (self.rate * shape), CHUNK)


class Switching(_Open):
    """A two-state Markov-modulated Poisson process: bursts at ``surge`` times the calm rate, a ``share`` of the time,
    each ``burst_s`` seconds long in the mean."""

    kind: Literal["switching"] = "switching"
    surge: float = Field(default=4.0, gt=1)
    share: float = Field(default=0.1, gt=0, lt=1)
    burst_s: float = Field(default=30.0, gt=0)

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        calm = self.rate / (1 + self.share * (self.surge - 1))
        at, surging = 0.0, rng.random() < self.share
        while True:
            mean = self.burst_s if surging else self.burst_s * (1 - self.share) / self.share
            end = at + float(rng.exponential(mean))
            count = rng.poisson((end - at) * calm * (self.surge if surging else 1.0))
            yield from np.sort(rng.uniform(at, end, count)).tolist()
            at, surging = end, not surging


class Diurnal(_Open):
    """A Poisson process over the day: rate x (1 + swing x cos(2 pi (t - peak_at_s) / period_s)), by thinning."""

    kind: Literal["diurnal"] = "diurnal"
    swing: float = Field(default=0.6, ge=0, le=1)
    period_s: float = Field(default=86_400.0, gt=0)
    peak_at_s: float = 0.0

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        top = 1 + self.swing
        at = 0.0
        while True:
            chunk = at + np.cumsum(rng.exponential(1 / (self.rate * top), CHUNK))
            at = float(chunk[-1])
            level = 1 + self.swing * np.cos(2 * math.pi * (chunk - self.peak_at_s) / self.period_s)
            yield from chunk[rng.random(CHUNK) * top < level].tolist()


class Trace(BaseModel):
    """Recorded times in seconds from 0, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["trace"] = "trace"
    at: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.at[0] < 0 or self.at[-1] <= 0 or any(b < a for a, b in itertools.pairwise(self.at)):
            raise ValueError("times of a trace are seconds from 0 in order, and not all at once")
        return self

    @property
    def rate(self) -> float:
        return len(self.at) / self.at[-1]

    def at_rate(self, rate: float) -> Trace:
        """Played faster or slower."""
        scale = self.rate / rate
        return Trace(at=tuple(t * scale for t in self.at))

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        return iter(self.at)


class Closed(BaseModel):
    """``concurrency`` clients that each ask again at once; None: as many as keep the fleet saturated."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["closed"] = "closed"
    concurrency: int | None = Field(default=None, ge=1)

    @property
    def rate(self) -> None:
        return None

    def at_rate(self, rate: float) -> Poisson:
        return Poisson(rate=rate)

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        """All at the start: who runs it sends the next as one ends."""
        return itertools.repeat(0.0)


Arrivals = Annotated[Poisson | Bursty | Switching | Diurnal | Trace | Closed, Field(discriminator="kind")]
