"""POST /v1/chat/completions, streamed and not, and what other dialects share with it: a call becomes a response, which
stops the generation when the client hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from r1_serve.errors import Cancelled, InternalError, InvalidRequest, R1Error
from r1_serve.router.call import Call, Event
from r1_serve.router.http.body import read_json
from r1_serve.router.http.dialect import Dialect, Format
from r1_serve.router.http.errors import error_response
from r1_serve.router.http.shape import completion_body
from r1_serve.router.http.sse import Chunks
from r1_serve.router.http.wire import Wire, while_connected
from r1_serve.router.request import ChatRequest
from r1_serve.router.service import Service
from r1_serve.router.stall import stalled
from r1_serve.router.tenants import bearer
from r1_serve.router.validate import check

logger = logging.getLogger(__name__)

TIMEOUT_HEADER = "x-request-timeout"


async def chat_completions(request: Request) -> Response:
    """Raises R1Error for whatever is known before the first token."""

    def read(value: Any) -> tuple[ChatRequest, Dialect, bool]:
        body = check(value)
        if body.stream_options is not None and not body.stream:
            raise InvalidRequest("stream_options: only with stream true", field="stream_options")
        asked = body.stream_options
        usage = bool(asked and asked.include_usage)
        counted = bool(asked and asked.continuous_usage_stats)
        dialect = Dialect(
            lambda call: Chunks(call, include_usage=usage, continuous_usage=counted), completion_body, error_response
        )
        return body.request(), dialect, bool(body.stream)

    return await respond(request, read)


async def respond(request: Request, read: Callable[[Any], tuple[ChatRequest, Dialect, bool]]) -> Response:
    """Open the call that the body asks for: ``read`` makes of it a request, the dialect of its answer, and whether that
    is streamed. Raises R1Error."""
    service: Service = request.app.state.service
    try:
        timeout_s = _timeout(request)
        body = await read_json(request, service.settings.max_body_bytes, service.settings.body_s)
        chat, dialect, streamed = read(body)
    except R1Error as e:
        raise service.refused(e) from None
    call = await service.open(
        chat, request.state.request_id, timeout_s, key_of(request), request.headers.get("traceparent")
    )
    return _Stream(call, service, dialect) if streamed else _Whole(call, dialect)


def _timeout(request: Request) -> float | None:
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"{TIMEOUT_HEADER}: give seconds above 0, not {given[:40]!r}", field=TIMEOUT_HEADER)
    return seconds


def key_of(request: Request) -> str | None:
    """OpenAI's header, or Anthropic's."""
    return bearer(request.headers.get("authorization")) or request.headers.get("x-api-key")


class _Whole(Response):
    """The complete answer, once it is complete."""

    def __init__(self, call: Call, dialect: Dialect) -> None:
        super().__init__()
        self._call = call
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events: list[Event] = []
        with while_connected(scope, self._call):
            try:
                while new := await self._call.take():
                    events += new
                body = orjson.dumps(self._dialect.whole(self._call, events))
                response = Response(body, media_type="application/json")
            except Cancelled:
                return
            except R1Error as e:
                response = self._dialect.refusal(e)
        await response(scope, receive, send)


class _Stream(Response):
    """Events as they come. Until the first one an error still has its own status; then it is an event."""

    def __init__(self, call: Call, service: Service, dialect: Dialect) -> None:
        super().__init__()
        self._call = call
        self._dialect = dialect
        self._metrics = service.metrics
        self._pace = service.pace
        self._keep_alive_s = service.settings.keep_alive_s
        self._stall_s = service.settings.stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What needs no event is made before the first, which then goes out the sooner.
        chunks = self._dialect.stream(self._call)
        headers = [
            (b"content-type", chunks.media_type),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        wire = Wire(scope, chunks, self._pace)
        with while_connected(scope, self._call), self._pace:
            try:
                events = await self._call.take(self._keep_alive_s)
            except Cancelled:
                return
            except R1Error as e:
                await self._dialect.refusal(e)(scope, receive, send)
                return
            if events:
                wire.hold_head()
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            with contextlib.suppress(Cancelled):
                await self._events(events, chunks, wire, send)

    async def _events(self, events: list[Event], chunks: Format, wire: Wire, send: Send) -> None:
        """Sends what waits, then sleeps while text goes straight down the wire: until that is full, the keep-alive is
        due or the call ends."""
        call = self._call

        async def write(data: bytes, *, more: bool = True) -> None:
            if not await wire.room(self._stall_s):
                self._metrics.connections_closed.labels("stalled").inc()
                call.fail(stalled(self._stall_s))
                wire.cut()
                raise Cancelled("nobody reads this stream")
            await send({"type": "http.response.body", "body": data, "more_body": more})
            wire.written_at = asyncio.get_running_loop().time()

        data = chunks.opening()
        try:
            while True:
                data += wire.held() + b"".join(map(chunks.event, events))  # in this order: a format may have a state
                if call.ended and not events:
                    break
                if data or wire.idle() >= self._keep_alive_s:
                    await write(data or chunks.keep_alive)
                data = b""
                events = await call.take(self._keep_alive_s - wire.idle(), wire)
        except Cancelled:
            raise
        except R1Error as e:
            await write(data + wire.held() + chunks.error(e), more=False)
        except Exception:
            logger.exception("stream %s failed", call.request_id, extra={"request_id": call.request_id})
            hidden = InternalError(f"internal error; the router's log has more under request id {call.request_id}")
            await write(chunks.error(hidden), more=False)
        else:
            await write(data + chunks.closing(), more=False)
