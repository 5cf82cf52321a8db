"""How often a call may send: as events come while the event loop keeps up, merged over time where it does not.

A write to a client costs as much as a token's other work, a gRPC message several times that, so with many calls the
loop can spend all its time on them. How many calls are open says little about that: what matters is how much of its
time the loop has left. Two signs tell: the CPU time of its thread, and by how much it comes late to a tick, at work or
waiting for a core. A loop of many short steps is hardly ever late though it never rests; one that other processes keep
from the core is late on little CPU time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TICK_S = 0.01
WINDOW_S = 0.1
LONGEST_S = 0.02  # a reader does not see it
SHORTEST_S = 0.0025
BUSY, CALM = 0.5, 0.25  # shares of the loop's time


class Pace:
    """Of all calls of one event loop. It ticks only while calls are open."""

    def __init__(self) -> None:
        self.interval_s = 0.0
        self._open = 0
        self._late_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._held: list[Callable[[], None]] = []

    def __enter__(self) -> Pace:
        """A call opens."""
        self._open += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._began = loop.time()
            self._late_s, self._cpu_s = 0.0, time.thread_time()
            self._timer = loop.call_at(self._began + TICK_S, self._tick, self._began + TICK_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._open -= 1

    async def wait(self) -> None:
        """Between two messages of a call."""
        if self.interval_s:
            await asyncio.sleep(self.interval_s)

    def hold(self, flush: Callable[[], None]) -> None:
        """``flush`` what a call holds back, when the interval is over: one timer for all."""
        if not self._held:
            asyncio.get_running_loop().call_later(self.interval_s, self._flush)
        self._held.append(flush)

    def observe(self, share: float) -> None:
        """The loop was at work for ``share`` of a window: wait longer, shorter or as before."""
        if share > BUSY:
            self.interval_s = min(LONGEST_S, max(SHORTEST_S, 2 * self.interval_s))
        elif share < CALM:
            self.interval_s = self.interval_s / 2 if self.interval_s > SHORTEST_S else 0.0

    def _flush(self) -> None:
        held, self._held = self._held, []
        for flush in held:
            flush()

    def _tick(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._late_s += now - due
        if now - self._began >= WINDOW_S:
            cpu_s = time.thread_time()
            self.observe(max(self._late_s, cpu_s - self._cpu_s) / (now - self._began))
            self._began, self._late_s, self._cpu_s = now, 0.0, cpu_s
        if self._open:
            self._timer = loop.call_at(now + TICK_S, self._tick, now + TICK_S)
        else:
            self._timer = None
