"""From the frame's handler straight to a client's connection: no task switch and no ASGI message a token.

uvicorn's own objects are reached through the request's scope: the protocol below puts its response cycle there.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from r1_serve.router.choice import Kind
from r1_serve.router.http.sse import Chunks

_CYCLE = "r1.cycle"


class WiredProtocol(HttpToolsProtocol):
    """uvicorn's, which also lets a response find the connection it goes to."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.scope["extensions"] = {_CYCLE: {"cycle": self.cycle}}


class Wire:
    """Writes text of a response that has been started, as chunks of its transfer encoding.

    It takes nothing while the connection's buffer is over its high-water mark: then text is merged in the call, and the
    response's own task sends it once the client reads again.
    """

    def __init__(self, scope: Scope, chunks: Chunks) -> None:
        self._cycle: Any = scope["extensions"][_CYCLE]["cycle"]
        self._flow = self._cycle.flow
        self._write = self._cycle.transport.write
        self._text = chunks.text
        self._now = asyncio.get_running_loop().time
        self.written_at = self._now()  # in the loop's time

    def idle(self) -> float:
        """Seconds since anything was written."""
        return self._now() - self.written_at

    def __call__(self, index: int, kind: Kind, text: str) -> bool:
        if self._flow.write_paused or self._cycle.disconnected:
            return False
        data = self._text(index, kind, text)
        self._write(b"%x\r\n%b\r\n" % (len(data), data))
        self.written_at = self._now()
        return True
