"""The KV forecast: how many cache tokens a rank will hold over the next minutes.

A running request holds its context and gains a token a step, until it ends and frees all of it. So at ``h`` steps from
now it is expected to hold ``(context + h) * P(still running)``: thoughts grow late and end at once. A rank's forecast
is the sum over its requests, with the variance of that sum, on a fixed grid of horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from r1_cluster.routing.lengths import Curves, LengthKey
from r1_cluster.routing.survival import Floats

HORIZONS = (0, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # engine steps
AHEAD: Floats = np.array(HORIZONS, dtype=np.float64)
HORIZON_COUNT = len(HORIZONS)
_ZEROS = (0.0,) * HORIZON_COUNT


class KvForecast:
    """Expected KV tokens at each of ``HORIZONS``, and their variance: the two rows of ``both``."""

    __slots__ = ("both",)

    def __init__(self, mean: Sequence[float] | Floats = _ZEROS, variance: Sequence[float] | Floats = _ZEROS) -> None:
        self.both: Floats = np.array((mean, variance), dtype=np.float64)

    @classmethod
    def of(cls, both: Floats) -> KvForecast:
        """Takes the array over."""
        forecast = cls.__new__(cls)
        forecast.both = both
        return forecast

    @property
    def mean(self) -> Floats:
        mean: Floats = self.both[0]
        return mean

    @property
    def variance(self) -> Floats:
        variance: Floats = self.both[1]
        return variance

    def __add__(self, other: KvForecast) -> KvForecast:
        return KvForecast.of(self.both + other.both)

    def peak(self, deviations: float = 0.0) -> float:
        """The largest expected KV at any horizon, so many standard deviations above the mean."""
        return self.peak_with(NOTHING, deviations)

    def peak_with(self, other: KvForecast, deviations: float = 0.0, shift: float = 0.0) -> float:
        """The peak of both together, and ``shift`` tokens that stay."""
        both = self + other
        return shift + float(np.max(both.mean + deviations * np.sqrt(both.variance)))


NOTHING = KvForecast()


class Progress(Protocol):
    """Where a placed choice stands, read when a forecast is refreshed; nothing is pushed for a token."""

    def standing(self) -> tuple[int, int, bool]:
        """Tokens generated, those of them that are of the answer, and whether it still thinks."""


class Shape(NamedTuple):
    """What a choice may grow to. ``budget`` bounds the thought, ``max_tokens`` thought and answer, in tokens."""

    key: LengthKey
    prompt_tokens: int
    max_tokens: int
    budget: int
    opens_thought: bool = True


class Standing(NamedTuple):
    """A Progress as a value."""

    completion_tokens: int = 0
    answer_tokens: int = 0
    thinking: bool = True

    def standing(self) -> tuple[int, int, bool]:
        return self


THINKING, ANSWERING = Standing(), Standing(thinking=False)  # at its start


class Following:
    """Progress of a choice whose ``of`` is known only later: until then it stands at its start."""

    __slots__ = ("of",)

    def __init__(self, opens_thought: bool = True) -> None:
        self.of: Progress = THINKING if opens_thought else ANSWERING

    def standing(self) -> tuple[int, int, bool]:
        return self.of.standing()


def in_blocks(tokens: Floats, block: int) -> Floats:
    """What so many tokens take of a cache that is given out in blocks of ``block`` tokens."""
    return tokens if block == 1 else block * np.ceil(tokens / block)


def forecast_new(curves: Curves, shape: Shape, block: int = 1) -> KvForecast:
    """The KV of a request that starts now, in a cache of such blocks."""
    held = in_blocks(shape.prompt_tokens + AHEAD, block)
    both = held * curves.from_start(AHEAD, shape.opens_thought, shape.budget, shape.max_tokens)
    variance = both[1]
    variance *= held
    return KvForecast.of(both)


def forecast_of_others(tokens: Floats, requests: Floats, alive: Floats) -> Floats:
    """Of N ranks what other routers have there, N by 2 by horizons: so many tokens of so many requests, which go on as
    ``alive`` says. Tokens of no known request stay."""
    held = tokens[:, None] + requests[:, None] * AHEAD
    known = requests[:, None] > 0
    both = np.empty((len(tokens), 2, HORIZON_COUNT))
    both[:, 0] = np.where(known, held * alive, tokens[:, None])
    both[:, 1] = np.where(known, held * held * alive * (1.0 - alive) / np.maximum(1.0, requests)[:, None], 0.0)
    return both


def forecast_running(curves: Curves, numbers: Sequence[float], block: int = 1) -> Floats:
    """Forecasts of N choices, N by 2 by horizons, all of them with the same curves. ``numbers``: of each choice in turn
    its prompt tokens, ``max_tokens`` and budget, and its ``standing``."""
    columns = np.array(numbers, dtype=np.float64).reshape(-1, 6).T
    prompt, max_tokens, budget, generated, answered, thinking = columns
    alive = curves.survival(
        AHEAD, generated=generated, answered=answered, thinking=thinking > 0, budget=budget, max_tokens=max_tokens
    )
    alive[:, 0] = 1.0  # it is there now, whatever its limits say
    held = in_blocks((prompt + generated)[:, None] + AHEAD, block)
    both = np.empty((len(alive), 2, HORIZON_COUNT))
    mean = np.multiply(held, alive, out=both[:, 0])
    held *= mean
    np.subtract(1.0, alive, out=alive)
    np.multiply(held, alive, out=both[:, 1])
    return both
