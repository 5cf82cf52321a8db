"""Generations whose rank is gone go on elsewhere: at once where a rank has room, else when one has.

The client sees a pause. What is resubmitted is the generation's own business, see ``generation.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from r1_serve.errors import FleetSaturated, NoWorkers, PoisonRequest, R1Error

if TYPE_CHECKING:
    from r1_serve.router.generation import Generation
    from r1_serve.router.metrics import Metrics
    from r1_serve.router.ranks import Rank

# Between looks for room while all ranks are full. An arriving gang is looked at as it comes.
RETRY_S = 0.1


class Migrations:
    """``pick(generation, avoid)`` raises NoWorkers or FleetSaturated where no rank takes it now; ``wait_s`` is how long
    it may wait for one before its own error ends it (the request's deadline holds in any case).

    A generation that may have killed its rank - it had not got a token there - is a suspect. Suspects go back on
    probation, one at first and twice as many each time all of them got a token: what kills a rank while it is there
    alone is convicted, and the many that only were beside it are free within a few rounds.
    """

    def __init__(
        self,
        pick: Callable[[Generation, Rank | None], Rank],
        metrics: Metrics,
        clock: Callable[[], float],
        wait_s: float,
    ) -> None:
        self._pick = pick
        self._metrics = metrics
        self._clock = clock
        self._wait_s = wait_s
        self._waiting: dict[Generation, tuple[float, R1Error]] = {}  # since when, and how it ends without a rank
        self._probation: set[Generation] = set()
        self._allowed = self._released = 1  # on probation at once; that were the last time
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Who waits or is on probation."""
        return len(self._waiting) + len(self._probation)

    def resume(self, generation: Generation, error: R1Error, avoid: Rank | None = None) -> None:
        """Find a rank now or later; ``error`` ends the call if there is none in time. To ``avoid`` one is not worth a
        wait."""
        if generation in self._probation:
            self._probation.discard(generation)
            if generation.suspect and self._released == 1:
                self.convict(generation)
                return
            self._allowed = 1
        if avoid is not None:
            if not self._place(generation, self._clock(), avoid):
                self.refuse(generation, error, "no_worker")
            return
        self._waiting[generation] = self._clock(), error
        self.look()

    def cleared(self, generation: Generation) -> None:
        """A suspect got a token."""
        self._probation.discard(generation)
        if not self._probation:
            self._allowed *= 2
            self.look()

    def convict(self, generation: Generation) -> None:
        text = "workers died with this request, one after the other: it is not tried on another; report its request id"
        self.refuse(generation, PoisonRequest(text), "poison")

    def refuse(self, generation: Generation, error: R1Error, outcome: str) -> None:
        self._metrics.migrations.labels(outcome).inc()
        generation.fail(error)

    def look(self) -> None:
        """Place who waits, in order of arrival."""
        self._probation = {generation for generation in self._probation if not generation.done}
        free = room = 0 if self._probation else self._allowed
        full: set[str] = set()
        for generation, (since, error) in list(self._waiting.items()):
            model = generation.call.model.name
            if generation.done:
                self._metrics.migrations.labels("abandoned").inc()
            elif model not in full and (free or not generation.suspect) and self._place(generation, since):
                if generation.suspect:
                    self._probation.add(generation)
                    free -= 1
            else:
                if free or not generation.suspect:
                    full.add(model)
                if self._clock() - since < self._wait_s:
                    continue
                self.refuse(generation, error, "no_worker")
            self._waiting.pop(generation, None)
        if free < room:
            self._released = room - free
        self._again()

    def _place(self, generation: Generation, since: float, avoid: Rank | None = None) -> bool:
        try:
            rank = self._pick(generation, avoid)
        except (NoWorkers, FleetSaturated):
            return False
        self._metrics.migrations.labels("resumed").inc()
        self._metrics.migration_wait.observe(self._clock() - since)
        generation.start(rank)
        return True

    def _again(self) -> None:
        """One timer while anyone waits, none otherwise."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            delay = min(RETRY_S, self._wait_s)
            self._timer = asyncio.get_running_loop().call_later(delay, self.look)
        elif not self._probation:
            self._allowed = 1
