"""How a pod that must go asks its ranks to go first: through files, for nothing listens on a worker. The head's pod
waits for the others: without it Ray ends every node within a minute, whatever grace their pods have.

Each rank puts ``<pid>.rank`` into the node's run folder. ``r1 leave``, a pod's preStop hook, puts ``leave`` there and
waits until every rank has taken its file away, or died.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from r1_serve.errors import StartupError
from r1_serve.settings import ray_address

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


Wait = Callable[[float], None]


def leave(
    folder: Path, timeout_s: float, *, clock: Callable[[], float] = time.monotonic, sleep: Wait = time.sleep
) -> int:
    """Ask the ranks of ``folder`` to leave and wait for them; return how many have not after ``timeout_s`` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LEAVE).touch()
    return outwait(lambda: len(_living(folder)), timeout_s, clock=clock, sleep=sleep)


def outwait(
    left: Callable[[], int], timeout_s: float, *, clock: Callable[[], float] = time.monotonic, sleep: Wait = time.sleep
) -> int:
    """Wait until ``left()`` is 0; return what it is at last."""
    deadline = clock() + timeout_s
    while (still := left()) and clock() < deadline:
        sleep(POLL_S)
    return still


def other_nodes() -> int:
    """Nodes of this node's Ray cluster that live, without this one. Raises StartupError where Ray does not answer."""
    import ray

    try:
        if not ray.is_initialized():
            ray.init(address=ray_address() or "auto", log_to_driver=False, logging_level=logging.ERROR)
        mine = ray.get_runtime_context().get_node_id()
        return sum(node["Alive"] and node["NodeID"] != mine for node in ray.nodes())
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise StartupError(f"no Ray cluster on this node: {' '.join(str(e).split())[:200]}") from e


def _living(folder: Path) -> list[int]:
    pids = [int(file.stem) for file in folder.glob("*.rank") if file.stem.isdigit()]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
