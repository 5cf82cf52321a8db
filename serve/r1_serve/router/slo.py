"""The promise to a client: the first token of the answer within so many seconds, for so large a share of requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

OBJECTIVE = 0.99  # the share of requests that meet it; deploy/prometheus/rules.yaml has the same number
WINDOW_S = 300.0
_SLICE_S = 5.0


class Slo:
    """Counts one model's requests over the last ``WINDOW_S`` seconds, to the nearest five."""

    def __init__(self, within_s: float, clock: Callable[[], float]) -> None:
        self.within_s = within_s
        self._clock = clock
        self._slices: deque[tuple[float, int, int]] = deque()  # start, met, missed

    def count(self, met: bool) -> None:
        now = self._clock()
        start = now - now % _SLICE_S
        got = self._slices.pop() if self._slices and self._slices[-1][0] == start else (start, 0, 0)
        self._slices.append((start, got[1] + met, got[2] + (not met)))
        self._forget(now)

    def burn(self) -> float:
        """The share of misses over the share that may miss; 0 without requests. Above 1 the error budget will not last
        (Beyer et al., The Site Reliability Workbook, chapter 5)."""
        self._forget(self._clock())
        met, missed = (sum(column) for column in list(zip(*self._slices, strict=True))[1:]) if self._slices else (0, 0)
        return missed / (met + missed) / (1 - OBJECTIVE) if met + missed else 0.0

    def _forget(self, now: float) -> None:
        while self._slices and self._slices[0][0] <= now - WINDOW_S:
            self._slices.popleft()
