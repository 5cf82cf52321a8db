"""What vllm-router costs a chunk: before a synthetic server that streams a chunk of every running request a step.

Chunks are shaped and paced as the synthetic fleet's tokens are for our router (``r1_bench.synthetic``), and the same
clients read them. vllm-router passes their bytes on; it neither detokenises nor splits.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, cast

from r1_bench.peers.servers import Server, vllm_router
from r1_bench.synthetic import Seen, SseClient, body

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"
_CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1795570031,"model":"r1-nano",'
    b'"choices":[{"index":0,"delta":{"reasoning_content":"%d","reasoning":"%d"},"finish_reason":null}]}\n\n'
)


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream:
    """The server behind. A request gets its first chunk at once, the rest of ``chunks`` after :meth:`go`."""

    def __init__(self, chunks: int, step_s: float) -> None:
        self.sent_at = [0.0] * 10  # of the last step with each digit, as a synthetic rank's
        self.sent = 0
        self.paced = step_s > 0
        self.step_s, self._chunks = step_s, chunks
        self._running: dict[_Connection, int] = {}
        self._go = asyncio.Event()

    def go(self) -> None:
        self._go.set()

    async def serve(self) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(lambda: _Connection(self), "127.0.0.1", 0)

    def asked(self, connection: _Connection) -> None:
        head = _HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n"
        connection.write(head + _chunked(_CHUNK % (0, 0)))
        self._running[connection] = self._chunks - 1
        self.sent += 1

    def gone(self, connection: _Connection) -> None:
        self._running.pop(connection, None)

    async def steps(self) -> None:
        await self._go.wait()
        step, due = 0, time.monotonic()
        while self._running:
            step += 1
            due += self.step_s
            await asyncio.sleep(max(0.0, due - time.monotonic()) if self.paced else 0)
            await asyncio.gather(*(connection.writable.wait() for connection in self._running))
            data = _chunked(_CHUNK % (step % 10, step % 10))
            self.sent_at[step % 10] = time.monotonic()
            self.sent += len(self._running)
            for connection, left in list(self._running.items()):
                if left > 1:
                    self._running[connection] = left - 1
                    connection.write(data)
                else:
                    del self._running[connection]
                    connection.write(data + _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self.writable = asyncio.Event()
        self.writable.set()
        self._upstream, self._buffer = upstream, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, complete, rest = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not complete or len(rest) < (int(length[1]) if length else 0):
            return
        self._buffer = b""
        if head.startswith(b"POST"):
            self._upstream.asked(self)
        else:
            self.write(_HEAD % b"application/json" + b"content-length: 2\r\n\r\n{}")

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable.set()
        self._upstream.gone(self)


async def drive(streams: int, chunks: int, step_s: float) -> dict[str, Any]:
    """CPU a chunk and the way of a chunk through vllm-router. Raises Unavailable where it cannot be installed."""
    upstream = Upstream(chunks, step_s)
    async with await upstream.serve() as server:
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        manager = vllm_router(port)
        where = await asyncio.to_thread(manager.__enter__)  # it asks the server behind for its health
        try:
            return await _measure(upstream, where, streams, loop)
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)


async def _measure(upstream: Upstream, where: Server, streams: int, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    seen, clients = Seen(), []
    for _ in range(streams):
        client = SseClient(seen, body(), [upstream], look=upstream.paced)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", where.port)  # type: ignore[misc]
        await client.first
        clients.append(client)
    before, cpu, started = upstream.sent, where.cpu_s(), time.monotonic()
    upstream.go()
    await upstream.steps()
    await asyncio.gather(*(client.done for client in clients))
    seconds, used, count = time.monotonic() - started, where.cpu_s() - cpu, upstream.sent - before
    if seen.broken or not count:
        raise RuntimeError(f"{seen.broken} of {streams} streams through vllm-router broke, {count} chunks were sent")
    transit = sorted(seen.transit)
    return {
        "door": "vllm-router",
        "streams": streams,
        "step_ms": round(upstream.step_s * 1e3),
        "tokens": count,
        "us_per_token": round(used / count * 1e6, 1),
        "tokens_per_s_per_core": round(count / used) if used else None,  # its CPU time is counted in hundredths
        "router_busy": round(used / seconds, 2),
        "tokens_per_piece": round(count / seen.pieces, 2) if seen.pieces else None,
        "ttft_ms_p50": round(sorted(seen.first_token)[streams // 2] * 1e3, 2),
        "ttft_ms_p99": round(sorted(seen.first_token)[int(streams * 0.99)] * 1e3, 2),
        "transit_ms_p50": round(transit[len(transit) // 2] * 1e3, 2) if transit else None,
        "transit_ms_p99": round(transit[int(len(transit) * 0.99)] * 1e3, 2) if transit else None,
        "rss_mb": round(where.rss_mb(), 1),
    }
