"""A client's call: its choices' events, merged until the client takes them, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from r1_cluster.routing.policy import Choice as RoutingChoice
from r1_cluster.routing.tenants import Tenant

from r1_serve.errors import Cancelled, DeadlineExceeded, R1Error
from r1_serve.router.choice import Kind, Thought
from r1_serve.router.generation import Generation
from r1_serve.router.limits import UNLIMITED
from r1_serve.router.models import ServedModel
from r1_serve.router.request import ChatRequest
from r1_serve.router.usage import Usage
from r1_serve.tracing import ChatTrace


@dataclass(frozen=True, slots=True)
class Text:
    """New text of choice ``index``."""

    index: int
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Choice ``index`` is complete. ``reason`` is stop or length, ``thought`` how its thought went."""

    index: int
    reason: str
    thought: Thought


Event = Text | Finished

# Takes new text at once and returns True, or cannot now.
Direct = Callable[[int, Kind, str], bool]


class Call:
    """One request on its way. Rank frames push events in, one reader takes them out.

    A slow reader costs memory only for text: what it has not taken is merged to one piece a choice and kind, and the
    text is bounded by ``max_tokens``. ``on_end(call, error)`` is called exactly once.
    """

    def __init__(
        self,
        request_id: str,
        request: ChatRequest,
        model: ServedModel,
        tenant: Tenant,
        *,
        timeout_s: float,
        created: int,
        clock: Callable[[], float],
        on_end: Callable[[Call, R1Error | None], None],
    ) -> None:
        self.request_id = request_id
        self.request = request
        self.model = model
        self.tenant = tenant
        self.created = created  # unix seconds
        self.clock = clock
        self.started_at = clock()
        self.ended_at: float | None = None
        self.prompt_tokens = 0
        self.budget = UNLIMITED  # of each choice's thought, resolved when its turn comes
        self.trace: ChatTrace | None = None
        self.choice = RoutingChoice(None)  # where it went, and why
        self.generations: list[Generation] = []
        self.error: R1Error | None = None
        self._events: list[Event] = []
        self._open_choices = request.n
        self._on_end = on_end
        self._direct: Direct | None = None
        self._wake: asyncio.Future[None] | None = None
        self.deadline = self.started_at + timeout_s
        self._timeout_s = timeout_s
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._expire)

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    @property
    def route(self) -> str:
        """Where it went and which scores decided; empty before its turn."""
        return self.choice.explain() if self.choice.ranks else ""

    @property
    def waiting(self) -> tuple[Event, ...]:
        """Events the reader has not taken."""
        return tuple(self._events)

    def usage(self) -> Usage:
        return Usage.of(self)

    def push(self, index: int, kind: Kind, text: str) -> None:
        if self._direct is not None and not self._events and self._direct(index, kind, text):
            return
        for at in range(len(self._events) - 1, -1, -1):
            event = self._events[at]
            if event.index == index:
                if isinstance(event, Text) and event.kind is kind:
                    self._events[at] = Text(index, kind, event.text + text)
                    return
                break
        self._events.append(Text(index, kind, text))
        self._notify()

    def finish(self, index: int, reason: str, thought: Thought) -> None:
        self._events.append(Finished(index, reason, thought))
        self._open_choices -= 1
        if self._open_choices == 0:
            self._end(None)
        self._notify()

    def fail(self, error: R1Error) -> None:
        """End the call with ``error``; what still runs for it is aborted."""
        self._end(error)
        self._notify()

    def cancel(self) -> None:
        """The client is gone. Harmless once the call has ended."""
        self.fail(self._overdue() if self.clock() >= self.deadline else Cancelled("the client went away"))

    async def take(self, timeout_s: float | None = None, direct: Direct | None = None) -> list[Event]:
        """New events, waiting for the first up to ``timeout_s``; empty when it passed or when the call has ended.

        While it waits, text goes to ``direct``, and the reader sleeps on until that cannot take it: the token path has
        no task switch. Raises the R1Error the call ended with, after the events before it were taken.
        """
        if not self._events and not self.ended:
            loop = asyncio.get_running_loop()
            self._direct, self._wake = direct, loop.create_future()
            timer = None if timeout_s is None else loop.call_later(timeout_s, self._notify)
            try:
                await self._wake
            finally:
                self._wake = self._direct = None
                if timer is not None:
                    timer.cancel()
        if self._events:
            events, self._events = self._events, []
            return events
        if self.error is not None:
            raise self.error
        return []

    def _expire(self) -> None:
        self.fail(self._overdue())

    def _overdue(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"not finished within {self._timeout_s:g} s: allow more time, or lower max_tokens", retry_after=None
        )

    def _end(self, error: R1Error | None) -> None:
        if self.ended:
            return
        self.ended_at = self.clock()
        self.error = error
        self._timer.cancel()
        for generation in self.generations:
            generation.abort()
        self._on_end(self, error)

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
