"""Progress: one line a stage on stderr, with its seconds; on a terminal the seconds count while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Clock = Callable[[], float]


class Stages:
    """Prints stages as they pass. ``out`` that is no terminal gets each line once, without control characters."""

    def __init__(self, out: TextIO | None = None, clock: Clock = time.monotonic) -> None:
        self._out = sys.stderr if out is None else out
        self._clock = clock
        self._what = ""
        self._begin = 0.0
        self._shown = -1

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Name what is being done; an exception leaves the line open for the error to say why."""
        self._what, self._begin, self._shown = what, self._clock(), -1
        self._write(f"{what} … ")
        try:
            yield
        except BaseException:
            self._write("\n")
            raise
        self._write(f"{self._clear()}{self._clock() - self._begin:.1f} s\n")

    def tick(self) -> None:
        """Call now and then while a stage runs."""
        seconds = int(self._clock() - self._begin)
        if self._out.isatty() and seconds != self._shown:
            self._shown = seconds
            self._write(f"{self._clear()}{seconds} s")

    def _clear(self) -> str:
        return f"\r{self._what} … " if self._out.isatty() else ""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
