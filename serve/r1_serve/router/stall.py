"""Writes that take too long, because their reader has stopped reading."""

from __future__ import annotations

import asyncio
from types import TracebackType

from r1_serve.errors import ClientStalled


def stalled(seconds: float) -> ClientStalled:
    return ClientStalled(f"the client has read nothing for {seconds:g} s: read the stream as it comes")


class Stall:
    """``with Stall(seconds) as stall``: the task ends with ClientStalled where a write takes longer than about that.

    A write only notes its time in ``since`` (of the loop), and None when it is done: a timeout of its own would cost
    more than the write's share of a token.
    """

    __slots__ = ("_loop", "_seconds", "_struck", "_task", "_timer", "since")

    def __init__(self, seconds: float) -> None:
        self.since: float | None = None
        self._seconds = seconds
        self._struck = False
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Stall:
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._struck and kind is asyncio.CancelledError and self._task is not None and self._task.uncancel() == 0:
            raise stalled(self._seconds) from None

    def _look(self) -> None:
        if self.since is not None and self._loop.time() - self.since > self._seconds and self._task is not None:
            self._struck = True
            self._task.cancel()
            return
        self._timer = self._loop.call_later(self._seconds / 4, self._look)
