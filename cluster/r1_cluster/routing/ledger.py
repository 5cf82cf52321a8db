"""What is placed on each rank, and the forecast of its KV."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from r1_cluster.routing.kv import (
    HORIZON_COUNT,
    NOTHING,
    Following,
    KvForecast,
    Progress,
    Shape,
    forecast_new,
    forecast_running,
)
from r1_cluster.routing.lengths import LengthForecast, LengthKey
from r1_cluster.routing.survival import Floats


class _Placed:
    """A choice, and its own forecast as of the last reading: ``forecasts[at]``."""

    __slots__ = ("at", "bounds", "forecasts", "key", "progress")

    def __init__(self, shape: Shape, progress: Progress, forecast: Floats) -> None:
        self.key, self.bounds, self.progress = shape.key, shape[1:4], progress
        self.forecasts, self.at = forecast[None], 0


class KvLedger:
    """The choices placed on each rank and the forecast of their KV. A placed or ended choice counts at once; growth is
    read from ``Progress`` when a rank's forecast is older than ``refresh_s`` seconds.

    Each rank has a row in ``forecasts`` (rows by mean and variance by horizons) and ``counts``, as long as it is not
    forgotten.
    """

    def __init__(self, lengths: LengthForecast, refresh_s: float = 1.0) -> None:
        self.forecasts = np.zeros((16, 2, HORIZON_COUNT))
        self.counts: list[int] = []
        self.refreshed_at: list[float] = []  # infinite of ranks that have nothing: never due
        self.block_tokens = 1  # of the ranks' caches
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
            forecast = forecast_new(self._lengths.curves(shape.key), shape, self.block_tokens)
        row = self.row(rank)
        if not self.counts[row]:
            self.refreshed_at[row] = now
        self._placed[row][self._next] = _Placed(shape, progress, forecast.both)
        held = self.forecasts[row]
        held += forecast.both
        self.counts[row] += 1
        self._where[self._next] = row
        return self._next

    def remove(self, number: int) -> int | None:
        """The choice ended or left the rank. Numbers of a rank that is gone are passed over. Returns the row."""
        row = self._where.pop(number, None)
        if row is None:
            return None
        gone = self._placed[row].pop(number)
        self.counts[row] -= 1
        if self.counts[row]:
            left = self.forecasts[row]
            np.subtract(left, gone.forecasts[gone.at], out=left)
            np.maximum(left, 0.0, out=left)
        else:
            self._clear(row)
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

    def held(self, row: int) -> float:
        """KV tokens of what is placed there, as of the last reading."""
        return self.forecasts.item(row, 0, 0)

    def peak(self, rank: str) -> float:
        """KV tokens of what is placed on the rank, at its forecast worst moment."""
        row = self._rows.get(rank)
        return 0.0 if row is None else float(self.forecasts[row, 0].max())

    def ahead(self, rank: str, now: float) -> KvForecast:
        """The rank's forecast, for what this ledger has placed there."""
        row = self._rows.get(rank)
        if row is None or not self.counts[row]:
            return NOTHING
        self.refresh((row,), now)
        return KvForecast.of(self.forecasts[row].copy())

    def refresh(self, rows: Sequence[int], now: float) -> list[int]:
        """Read the growth on those of ``rows`` whose forecast is old. Returns them."""
        refreshed_at, before = self.refreshed_at, now - self._refresh_s
        due = [row for row in rows if refreshed_at[row] <= before]
        for row in due:
            self._read(row)
            refreshed_at[row] = now
        return due

    def _read(self, row: int) -> None:
        """Forecast each choice anew from where it stands."""
        by_key: dict[LengthKey, tuple[list[_Placed], list[float]]] = {}
        key: LengthKey | None = None
        for placed in self._placed[row].values():
            if placed.key != key:  # most often it is the one before
                key = placed.key
                some, numbers = by_key.setdefault(key, ([], []))
            some.append(placed)
            numbers += placed.bounds
            progress = placed.progress
            numbers += (progress.of if type(progress) is Following else progress).standing()
        total = self.forecasts[row]
        total[:] = 0.0
        for key, (some, numbers) in by_key.items():
            forecasts = forecast_running(self._lengths.curves(key), numbers, self.block_tokens)
            total += np.add.reduce(forecasts)
            for at, placed in enumerate(some):
                placed.forecasts, placed.at = forecasts, at

    def _grown(self) -> int:
        row = len(self._placed)
        self._placed.append({})
        self.counts.append(0)
        self.refreshed_at.append(math.inf)
        if row == len(self.forecasts):
            self.forecasts = np.concatenate([self.forecasts, np.zeros_like(self.forecasts)])
        return row

    def _clear(self, row: int) -> None:
        self._placed[row] = {}
        self.forecasts[row] = 0.0
        self.counts[row] = 0
        self.refreshed_at[row] = math.inf
