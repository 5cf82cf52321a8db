"""How a pod that must go asks its ranks to go first: through files, for nothing listens on a worker.

Each rank puts ``<pid>.rank`` into the node's run folder. ``r1 leave``, a pod's preStop hook, puts ``leave`` there and
waits until every rank has taken its file away, or died.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

LEAVE = "leave"
POLL_S = 0.5


class Doorway:
    """One rank's side. Without a folder nobody ever asks it to leave."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._mine = folder / f"{os.getpid()}.rank" if folder else None

    def enter(self) -> None:
        if self._folder is not None and self._mine is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._mine.touch()

    async def asked(self) -> None:
        """Return once this node's ranks are to leave."""
        while self._folder is None or not (self._folder / LEAVE).exists():  # noqa: ASYNC110  # another process's file
            await asyncio.sleep(POLL_S)

    def gone(self) -> None:
        if self._mine is not None:
            self._mine.unlink(missing_ok=True)


def leave(
    folder: Path,
    timeout_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Ask the ranks of ``folder`` to leave and wait for them; return how many have not after ``timeout_s`` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LEAVE).touch()
    deadline = clock() + timeout_s
    while (still := _living(folder)) and clock() < deadline:
        sleep(POLL_S)
    return len(still)


def _living(folder: Path) -> list[int]:
    pids = [int(file.stem) for file in folder.glob("*.rank") if file.stem.isdigit()]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
