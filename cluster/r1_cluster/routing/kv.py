"""The KV forecast: how many cache tokens a rank will hold over the next minutes.

A running request holds its context and gains a token a step, until it ends and frees all of it. So at ``h`` steps from
now it is expected to hold ``(context + h) * P(still running)``: thoughts grow late and end at once. A rank's forecast
is the sum over its requests, with the variance of that sum, on a fixed grid of horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from r1_cluster.routing.lengths import Curves, LengthForecast, LengthKey
from r1_cluster.routing.survival import Floats

HORIZONS = (0, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # engine steps
_AHEAD = np.array(HORIZONS, dtype=np.float64)
_H = len(HORIZONS)
_ZEROS = (0.0,) * _H


@dataclass(frozen=True, slots=True, eq=False)
class KvForecast:
    """Expected KV tokens at each of ``HORIZONS``, and their variance."""

    mean: Sequence[float] | Floats = _ZEROS
    variance: Sequence[float] | Floats = _ZEROS

    def __add__(self, other: KvForecast) -> KvForecast:
        return KvForecast(np.add(self.mean, other.mean), np.add(self.variance, other.variance))

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
    """The KV of a request that starts now."""
    alive = curves.from_start(_AHEAD, shape.opens_thought, shape.budget, shape.max_tokens)
    held = shape.prompt_tokens + _AHEAD
    mean = held * alive
    return KvForecast(mean, held * mean * (1.0 - alive))


def forecast_running(curves: Curves, choices: Sequence[tuple[Shape, Progress]]) -> tuple[Floats, Floats]:
    """Mean and variance of each choice, N by horizons, all of them with the same curves."""
    numbers = []
    for shape, progress in choices:
        at = progress.of if isinstance(progress, Following) else progress
        generated, thinking = at.completion_tokens, at.thinking
        answered = 0 if thinking else at.answer_tokens
        numbers.append((shape.prompt_tokens, shape.budget, shape.max_tokens, generated, answered, thinking))
    prompt, budget, max_tokens, generated_N, answered_N, thinking_N = np.array(numbers, dtype=np.float64).T
    alive = curves.survival(
        _AHEAD,
        generated=generated_N,
        answered=answered_N,
        thinking=thinking_N > 0,
        budget=budget,
        max_tokens=max_tokens,
    )
    alive[:, 0] = 1.0  # it is there now, whatever its limits say
    held = (prompt + generated_N)[:, None] + _AHEAD
    mean: Floats = held * alive
    return mean, held * mean * (1.0 - alive)


@dataclass(slots=True, eq=False)
class _Placed:
    """Its own forecast is row ``index`` of ``means`` and ``variances``, which it shares with those read with it."""

    shape: Shape
    progress: Progress
    means: Floats
    variances: Floats
    index: int


class KvLedger:
    """The choices placed on each rank and the forecast of their KV. A placed or ended choice counts at once; growth is
    read from ``Progress`` when a rank's forecast is older than ``refresh_s`` seconds.

    Each rank has a row in ``mean`` and ``variance`` (rows by horizons), ``peaks`` and ``counts``, as long as it is not
    forgotten.
    """

    def __init__(self, lengths: LengthForecast, refresh_s: float = 1.0) -> None:
        self.mean, self.variance = np.zeros((16, _H)), np.zeros((16, _H))
        self.peaks: list[float] = []
        self.counts: list[int] = []
        self.refreshed_at = np.full(16, np.inf)  # of ranks that have nothing: never due
        self._lengths = lengths
        self._refresh_s = refresh_s
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._placed: list[dict[int, _Placed]] = []
        self._where: dict[int, int] = {}
        self._next = 0

    def row(self, rank: str) -> int:
        """The rank's row, made if it has none yet."""
        row = self._rows.get(rank)
        if row is None:
            row = self._rows[rank] = self._free.pop() if self._free else self._grown()
        return row

    def place(self, rank: str, shape: Shape, progress: Progress, now: float, forecast: KvForecast | None = None) -> int:
        """Count a choice on a rank. Returns the number to remove it by. ``forecast``: as of now, if known already."""
        self._next += 1
        if forecast is None:
            forecast = forecast_new(self._lengths.curves(shape.key), shape)
        row = self.row(rank)
        mean, variance = np.asarray(forecast.mean), np.asarray(forecast.variance)
        placed = self._placed[row]
        if not placed:
            self.refreshed_at[row] = now
        placed[self._next] = _Placed(shape, progress, mean[None], variance[None], 0)
        self.mean[row] += mean
        self.variance[row] += variance
        self.peaks[row] = float(self.mean[row].max())
        self.counts[row] += 1
        self._where[self._next] = row
        return self._next

    def remove(self, number: int) -> int | None:
        """The choice ended or left the rank. Numbers of a rank that is gone are passed over. Returns the row."""
        row = self._where.pop(number, None)
        if row is None:
            return None
        gone = self._placed[row].pop(number)
        if not self._placed[row]:
            self._clear(row)
            return row
        mean, variance = self.mean[row], self.variance[row]
        np.maximum(0.0, mean - gone.means[gone.index], out=mean)
        np.maximum(0.0, variance - gone.variances[gone.index], out=variance)
        self.peaks[row] = float(mean.max())
        self.counts[row] -= 1
        return row

    def forget(self, rank: str) -> None:
        """The rank is gone, with all that was on it."""
        row = self._rows.pop(rank, None)
        if row is None:
            return
        for number in self._placed[row]:
            del self._where[number]
        self._clear(row)
        self._free.append(row)

    def count(self, rank: str) -> int:
        row = self._rows.get(rank)
        return 0 if row is None else self.counts[row]

    def peak(self, rank: str) -> float:
        """KV tokens of what is placed on the rank, at its forecast worst moment."""
        row = self._rows.get(rank)
        return 0.0 if row is None else self.peaks[row]

    def ahead(self, rank: str, now: float) -> KvForecast:
        """The rank's forecast, for what this ledger has placed there."""
        row = self._rows.get(rank)
        if row is None or not self.counts[row]:
            return NOTHING
        self.refresh(np.array([row]), now)
        return KvForecast(self.mean[row].copy(), self.variance[row].copy())

    def refresh(self, rows: np.ndarray[tuple[int], np.dtype[np.intp]], now: float) -> list[int]:
        """Read the growth on those of ``rows`` whose forecast is old. Returns them."""
        due: list[int] = rows[self.refreshed_at[rows] <= now - self._refresh_s].tolist()
        if not due:
            return due
        for row in due:
            self._read(row)
        self.refreshed_at[due] = now
        return due

    def _read(self, row: int) -> None:
        by_key: dict[LengthKey, list[_Placed]] = {}
        for placed in self._placed[row].values():
            by_key.setdefault(placed.shape.key, []).append(placed)
        mean = variance = np.zeros(_H)
        for key, group in by_key.items():
            means, variances = forecast_running(self._lengths.curves(key), [(p.shape, p.progress) for p in group])
            for index, placed in enumerate(group):
                placed.means, placed.variances, placed.index = means, variances, index
            mean, variance = mean + means.sum(axis=0), variance + variances.sum(axis=0)
        self.mean[row], self.variance[row] = mean, variance
        self.peaks[row] = float(mean.max())

    def _grown(self) -> int:
        row = len(self._placed)
        self._placed.append({})
        self.peaks.append(0.0)
        self.counts.append(0)
        if row == len(self.mean):
            blank = np.zeros_like(self.mean)
            self.mean, self.variance = np.concatenate([self.mean, blank]), np.concatenate([self.variance, blank])
            self.refreshed_at = np.concatenate([self.refreshed_at, np.full(row, np.inf)])
        return row

    def _clear(self, row: int) -> None:
        self._placed[row] = {}
        self.mean[row] = self.variance[row] = 0.0
        self.peaks[row], self.counts[row] = 0.0, 0
        self.refreshed_at[row] = np.inf
