"""From the frame's handler straight to a client's connection: no task switch and no ASGI message a token.

uvicorn's own objects are reached through the request's scope: the protocol below puts itself and its response cycle
there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from r1_serve.router.call import Call
from r1_serve.router.choice import Kind
from r1_serve.router.http.dialect import Format
from r1_serve.router.http.limits import Limits
from r1_serve.router.pace import Pace
from r1_serve.router.stall import stalled

_WIRED = "r1.wired"
LIMITS = "r1.limits"


@contextlib.contextmanager
def while_connected(scope: Scope, call: Call) -> Iterator[None]:
    """Cancels ``call`` as soon as the client is gone, and on the way out."""
    protocol: WiredProtocol = scope["extensions"][_WIRED]["protocol"]
    protocol.watch(call)
    try:
        yield
    finally:
        protocol.calls.discard(call)
        call.cancel()


class WiredProtocol(HttpToolsProtocol):
    """uvicorn's, which also lets a response find the connection it goes to, and keeps within :class:`Limits`: they come
    as the first of the application's state."""

    _waiting: asyncio.TimerHandle | None = None  # for the head of a request

    @property
    def _limits(self) -> Limits:
        return cast("Limits", self.app_state[LIMITS])

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.calls: set[Call] = set()  # that are answered here
        limits = self._limits
        if not limits.make_room():
            limits.closed.labels("too_many").inc()
            transport.write(limits.refusal())
            transport.close()
            return
        limits.protocols.add(self)
        limits.set_up(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        limits, unread = self._limits, isinstance(exc, TimeoutError)  # the kernel's, see Limits
        limits.protocols.discard(self)
        if unread:
            limits.closed.labels("stalled").inc()
        self._stop_waiting()
        super().connection_lost(exc)
        for call in tuple(self.calls):
            if unread:
                call.fail(stalled(limits.stall_s))
            else:
                call.cancel()

    def watch(self, call: Call) -> None:
        """Cancel ``call`` when the connection goes, or now where it is gone."""
        self.flow.resume_reading()  # paused where another request follows: then nobody would see the end
        self.calls.add(call)
        if self.transport.is_closing():
            call.cancel()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._wait()

    def _wait(self) -> None:
        """For a request's head, from the first byte or none: not for ever."""
        self._stop_waiting()
        self._limits.idle[self] = None
        self._waiting = self.loop.call_later(self._limits.idle_s, self.give_up)

    def _stop_waiting(self) -> None:
        self._limits.idle.pop(self, None)
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def give_up(self) -> None:
        """Close a connection that waits for a request."""
        self._stop_waiting()
        self._limits.protocols.discard(self)
        self._limits.closed.labels("idle").inc()
        self.transport.close()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()
        self.scope["extensions"] = {_WIRED: {"protocol": self, "cycle": self.cycle}}


class _HeldHead:
    """Stands for a connection's transport until a response's head and the first of its body are there, and writes them
    in one piece: a call of the kernel and a wake-up of the client less before the first token."""

    def __init__(self, cycle: Any) -> None:
        self._cycle, self._transport = cycle, cycle.transport
        self._head = b""
        cycle.transport = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._head:
            self._head = data
            return
        self._cycle.transport = self._transport
        self._transport.write(self._head + data)


class Wire:
    """Writes text of a response that has been started, as chunks of its transfer encoding.

    Where the event loop does not keep up, text within the pace's interval after the last is held back and goes out in
    one piece. It takes nothing while the connection's buffer is over its high-water mark: then text is merged in the
    call, and the response's own task sends it, after what is held, once the client reads again.
    """

    def __init__(self, scope: Scope, chunks: Format, pace: Pace) -> None:
        self._cycle: Any = scope["extensions"][_WIRED]["cycle"]
        self._flow = self._cycle.flow
        self._write = self._cycle.transport.write
        self._text = chunks.text
        self._pace = pace
        self._held: list[tuple[int, Kind, list[str]]] = []
        self._now = asyncio.get_running_loop().time
        self.written_at = self._now()  # in the loop's time

    def hold_head(self) -> None:
        """The response's head, to be sent next, goes out with what follows it."""
        _HeldHead(self._cycle)

    async def room(self, within_s: float) -> bool:
        """Whether there is room in the connection's buffer, or comes within ``within_s`` seconds."""
        if self._flow.write_paused:
            try:
                async with asyncio.timeout(within_s):
                    await self._flow.drain()
            except TimeoutError:
                return False
        return True

    def cut(self) -> None:
        """Close the connection with what is still unread in it."""
        self._cycle.disconnected = True
        self._cycle.transport.abort()

    def idle(self) -> float:
        """Seconds since anything was written."""
        return self._now() - self.written_at

    def held(self) -> bytes:
        """What is held back, to be written before anything else: no longer here."""
        held, self._held = self._held, []
        return b"".join(self._text(index, kind, "".join(parts)) for index, kind, parts in held)

    def __call__(self, index: int, kind: Kind, text: str) -> bool:
        if held := self._held:
            last = held[-1]
            if last[0] == index and last[1] is kind:
                last[2].append(text)
            else:
                held.append((index, kind, [text]))
            return True
        if self._flow.write_paused or self._cycle.disconnected:
            return False
        now, interval_s = self._now(), self._pace.interval_s
        if interval_s and now - self.written_at < interval_s:
            held.append((index, kind, [text]))
            self._pace.hold(self._flush)
            return True
        self._chunk(self._text(index, kind, text), now)
        return True

    def _flush(self) -> None:
        if (data := self.held()) and not self._cycle.disconnected:
            self._chunk(data, self._now())

    def _chunk(self, data: bytes, now: float) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(data), data))
        self.written_at = now
