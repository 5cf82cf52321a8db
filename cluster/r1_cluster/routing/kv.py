"""The KV forecast: how many cache tokens a rank will hold over the next minutes.

A running request holds its context and gains a token a step, until it ends and frees all of it. So at ``h`` steps from
now it is expected to hold ``(context + h) * P(still running)``: thoughts grow late and end at once. A rank's forecast
is the sum over its requests, with the variance of that sum, on a fixed grid of horizons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from r1_cluster.routing.lengths import Curves, LengthForecast, LengthKey

HORIZONS = (0, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # engine steps
_AHEAD = np.array(HORIZONS, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class KvForecast:
    """Expected KV tokens at each of ``HORIZONS``, and their variance."""

    mean: tuple[float, ...] = (0.0,) * len(HORIZONS)
    variance: tuple[float, ...] = (0.0,) * len(HORIZONS)

    def __add__(self, other: KvForecast) -> KvForecast:
        return KvForecast(_added(self.mean, other.mean), _added(self.variance, other.variance))

    def peak(self, deviations: float = 0.0) -> float:
        """The largest expected KV at any horizon, so many standard deviations above the mean."""
        return self.peak_with(NOTHING, deviations)

    def peak_with(self, other: KvForecast, deviations: float = 0.0, shift: float = 0.0) -> float:
        """The peak of both together, and ``shift`` tokens that stay."""
        pairs = zip(self.mean, other.mean, self.variance, other.variance, strict=True)
        return shift + max(a + b + deviations * math.sqrt(va + vb) for a, b, va, vb in pairs)


def _added(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


NOTHING = KvForecast()


class Progress(Protocol):
    """Where a placed choice stands, read when a forecast is refreshed; nothing is pushed for a token."""

    @property
    def completion_tokens(self) -> int: ...
    @property
    def answer_tokens(self) -> int: ...
    @property
    def thinking(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What a choice may grow to. ``budget`` bounds the thought, ``max_tokens`` thought and answer, in tokens."""

    key: LengthKey
    prompt_tokens: int
    max_tokens: int
    budget: int
    opens_thought: bool = True


@dataclass(frozen=True, slots=True)
class Standing:
    """A Progress as a value."""

    completion_tokens: int = 0
    answer_tokens: int = 0
    thinking: bool = True


class Following:
    """Progress of a choice whose ``of`` is known only later: until then it stands at its start."""

    __slots__ = ("of",)

    def __init__(self, opens_thought: bool = True) -> None:
        self.of: Progress = Standing(thinking=opens_thought)

    @property
    def completion_tokens(self) -> int:
        return self.of.completion_tokens

    @property
    def answer_tokens(self) -> int:
        return self.of.answer_tokens

    @property
    def thinking(self) -> bool:
        return self.of.thinking


def forecast_new(curves: Curves, shape: Shape) -> KvForecast:
    """What a choice not begun will hold from when it begins."""
    return forecast_running(curves, [(shape, Standing(thinking=shape.opens_thought))])[0]


def forecast_running(curves: Curves, choices: Sequence[tuple[Shape, Progress]]) -> list[KvForecast]:
    """One forecast a choice, all of them with the same curves."""
    numbers = [
        (shape.prompt_tokens, shape.budget, shape.max_tokens, now.completion_tokens, now.answer_tokens, now.thinking)
        for shape, now in choices
    ]
    prompt, budget, max_tokens, generated, answered, thinking = np.array(numbers, dtype=np.float64).T
    alive = curves.survival(
        _AHEAD, generated=generated, answered=answered, thinking=thinking > 0, budget=budget, max_tokens=max_tokens
    )
    alive[:, 0] = 1.0  # it is there now, whatever its limits say
    held = (prompt + generated)[:, None] + _AHEAD
    mean, variance = held * alive, held * held * alive * (1.0 - alive)
    return [KvForecast(tuple(m), tuple(v)) for m, v in zip(mean.tolist(), variance.tolist(), strict=True)]


@dataclass(slots=True)
class _Placed:
    rank: str
    shape: Shape
    progress: Progress
    forecast: KvForecast


@dataclass(slots=True)
class _OnRank:
    placed: dict[int, _Placed]
    total: KvForecast
    refreshed_at: float
    peak: float = 0.0  # of total

    def sum_to(self, total: KvForecast) -> None:
        self.total, self.peak = total, total.peak()


class KvLedger:
    """The choices placed on each rank and the forecast of their KV. A placed or ended choice counts at once; growth is
    read from ``Progress`` when a rank's forecast is older than ``refresh_s`` seconds."""

    def __init__(self, lengths: LengthForecast, refresh_s: float = 1.0) -> None:
        self._lengths = lengths
        self._refresh_s = refresh_s
        self._ranks: dict[str, _OnRank] = {}
        self._where: dict[int, str] = {}
        self._next = 0

    def place(self, rank: str, shape: Shape, progress: Progress, now: float) -> int:
        """Count a choice on a rank. Returns the number to remove it by."""
        self._next += 1
        forecast = forecast_new(self._lengths.curves(shape.key), shape)
        on = self._ranks.setdefault(rank, _OnRank({}, NOTHING, now))
        on.placed[self._next] = _Placed(rank, shape, progress, forecast)
        on.sum_to(on.total + forecast)
        self._where[self._next] = rank
        return self._next

    def remove(self, number: int) -> None:
        """The choice ended or left the rank. Numbers of a rank that is gone are passed over."""
        rank = self._where.pop(number, None)
        if rank is None or rank not in self._ranks:
            return
        on = self._ranks[rank]
        gone = on.placed.pop(number)
        if not on.placed:
            del self._ranks[rank]
            return
        on.sum_to(
            KvForecast(
                tuple(max(0.0, a - b) for a, b in zip(on.total.mean, gone.forecast.mean, strict=True)),
                tuple(max(0.0, a - b) for a, b in zip(on.total.variance, gone.forecast.variance, strict=True)),
            )
        )

    def forget(self, rank: str) -> None:
        """The rank is gone, with all that was on it."""
        on = self._ranks.pop(rank, None)
        for number in on.placed if on else ():
            self._where.pop(number, None)

    def count(self, rank: str) -> int:
        on = self._ranks.get(rank)
        return len(on.placed) if on else 0

    def peak(self, rank: str, reported: float = 0.0) -> float:
        """KV tokens at the rank's forecast worst moment, with what others hold of the ``reported`` tokens in use."""
        on = self._ranks.get(rank)
        return on.peak + max(0.0, reported - on.total.mean[0]) if on else reported

    def ahead(self, rank: str, now: float) -> KvForecast:
        """The rank's forecast, for what this ledger has placed there."""
        on = self._ranks.get(rank)
        if on is None:
            return NOTHING
        if now - on.refreshed_at >= self._refresh_s:
            self._refresh(on, now)
        return on.total

    def _refresh(self, on: _OnRank, now: float) -> None:
        by_key: dict[LengthKey, list[_Placed]] = {}
        for placed in on.placed.values():
            by_key.setdefault(placed.shape.key, []).append(placed)
        for key, group in by_key.items():
            forecasts = forecast_running(self._lengths.curves(key), [(p.shape, p.progress) for p in group])
            for placed, forecast in zip(group, forecasts, strict=True):
                placed.forecast = forecast
        means = zip(*(placed.forecast.mean for placed in on.placed.values()), strict=True)
        variances = zip(*(placed.forecast.variance for placed in on.placed.values()), strict=True)
        on.sum_to(KvForecast(tuple(map(sum, means)), tuple(map(sum, variances))))
        on.refreshed_at = now
