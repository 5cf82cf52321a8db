"""When the steps of a gang that had no event were done."""

from __future__ import annotations

from collections import deque

MARK = 32  # steps between two remembered times
MARKS = 4096


class Marks:
    """The times of every ``MARK``-th step, the oldest forgotten; times between them by a straight line."""

    __slots__ = ("_times", "next")

    def __init__(self) -> None:
        self.next = 0  # the step of the next mark
        self._times: deque[float] = deque(maxlen=MARKS)

    def add(self, step: int, k: int, begun: float, ended: float) -> None:
        """``k`` steps after ``step`` took from ``begun`` to ``ended``."""
        end = step + k
        while self.next <= end:
            self._times.append(begun + (ended - begun) * ((self.next - step) / k))
            self.next += MARK

    def time_of(self, step: int, now_step: int, now: float) -> float:
        """When ``step`` was done, where ``now_step`` is the last and was done ``now``; the oldest known where it is
        too long ago."""
        times = self._times
        if not times:
            return now
        first = self.next - MARK * len(times)
        if step <= first:
            return times[0]
        index, within = divmod(step - first, MARK)
        if index >= len(times) - 1:
            last_step, last = self.next - MARK, times[-1]
            return last + (now - last) * min(1.0, (step - last_step) / max(1, now_step - last_step))
        left, right = times[index], times[index + 1]
        return left + (right - left) * within / MARK
