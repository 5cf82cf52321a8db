"""A fleet and its clients without models: ranks that send a token of every running request a step, as fast as the
router takes frames or at a given pace, and clients that count bytes and look at the clock.

Both live in one process, so that a token's way through the router is measured on one clock. Each token is a digit, the
step's number modulo ten: what arrives says when it was sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import grpc
from r1_cluster.plan import Plan
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import fleet_pb2_grpc as rpc
from r1_serve.protos import reasoning_pb2 as north
from r1_serve.protos.version import PROTOCOL_VERSION

OPTIONS = (("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20))
CHAT = "/r1.v1.Reasoning/Chat"
MAX_TOKENS = 2000  # of every stream; its rank ends it within the three quarters that may be thought
LAST_DIGIT = {ord(str(digit)): digit for digit in range(10)}


class Rank:
    """One synthetic rank. ``step_s`` 0: as fast as the router takes it. A request's first token goes out at once; it
    ends after ``tokens``."""

    def __init__(self, plan: Plan, name: str, digits: Sequence[int], *, seats: int, step_s: float, tokens: int) -> None:
        self.sent_at = [0.0] * 10  # of the last step with each digit
        self.tokens = 0
        self._digits = digits
        self._limit = tokens
        self.paced = step_s > 0
        self._step_s = step_s
        self._running: dict[int, int] = {}  # request id to tokens left
        self._work = asyncio.Event()
        self._go = asyncio.Event()
        self._writing = asyncio.Lock()
        self._hello = pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            worker_id=name,
            plan_name=plan.name,
            plan_hash=plan.hash,
            model=plan.model.name,
            pool=plan.pools[0].name,
            gang_id=name,
            gang_size=1,
            capacity=pb.Capacity(kv_tokens=1 << 20, max_num_seqs=seats, max_model_len=plan.engine.max_model_len),
        )

    def go(self) -> None:
        """Until then every request gets its first token only."""
        self._go.set()

    async def run(self, address: str) -> None:
        """Attach and serve until cancelled."""
        async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
            call = rpc.FleetStub(channel).Attach()
            await call.write(pb.WorkerMessage(hello=self._hello))
            await call.read()
            stepping = asyncio.create_task(self._steps(call))
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    if message.HasField("submit"):
                        submit = message.submit
                        left = min(self._limit, submit.sampling.max_tokens) - 1
                        first = pb.Delta(request_id=submit.request_id, token_ids=[self._digits[0]])
                        if left == 0:
                            first.finish = pb.FINISH_LENGTH
                        else:
                            self._running[submit.request_id] = left
                            self._work.set()
                        self.tokens += 1
                        await self._write(call, pb.Frame(deltas=[first]))
                    elif message.HasField("abort"):
                        self._running.pop(message.abort.request_id, None)
            finally:
                stepping.cancel()

    async def _steps(self, call: grpc.aio.StreamStreamCall) -> None:
        step = 0
        await self._go.wait()
        due = time.monotonic()
        while True:
            if not self._running:
                self._work.clear()
                await self._work.wait()
                due = time.monotonic()
            step += 1
            if self._step_s:
                due += self._step_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            frame = pb.Frame(load=pb.Load(running=len(self._running)))
            token = self._digits[step % 10]
            for request_id, left in list(self._running.items()):
                if left > 1:
                    frame.steady_request_ids.append(request_id)
                    frame.steady_token_ids.append(token)
                    self._running[request_id] = left - 1
                else:
                    frame.deltas.add(request_id=request_id, token_ids=(token,), finish=pb.FINISH_LENGTH)
                    del self._running[request_id]
            self.tokens += len(frame.deltas) + len(frame.steady_token_ids)
            self.sent_at[step % 10] = time.monotonic()
            await self._write(call, frame)

    async def _write(self, call: grpc.aio.StreamStreamCall, frame: pb.Frame) -> None:
        """gRPC takes one write at a time."""
        async with self._writing:
            await call.write(pb.WorkerMessage(frame=frame))


@dataclass
class Seen:
    """What the clients saw, in seconds. A transit is a token's time from its rank to its client."""

    first_token: list[float] = field(default_factory=list)
    transit: list[float] = field(default_factory=list)
    pieces: int = 0
    bytes: int = 0
    broken: int = 0


class Clock(Protocol):
    """Whoever sends: when each digit was last sent."""

    @property
    def sent_at(self) -> Sequence[float]: ...


class SseClient(asyncio.Protocol):
    """One streamed request over a connection of its own; reads nothing but the last character of what comes."""

    def __init__(self, seen: Seen, body: bytes, ranks: Sequence[Clock], *, look: bool) -> None:
        self.first = asyncio.get_running_loop().create_future()
        self.done = asyncio.get_running_loop().create_future()
        self._seen, self._body, self._ranks, self._look = seen, body, ranks, look
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._started = time.monotonic()
        self._transport = cast(asyncio.Transport, transport)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: r1\r\ncontent-type: application/json\r\n"
        self._transport.write(head + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(self._body) + self._body)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        seen, now = self._seen, time.monotonic()
        seen.bytes += len(data)
        if not self.first.done():
            if b'"reasoning":"' not in data:
                return
            seen.first_token.append(now - self._started)
            self.first.set_result(None)
            return
        seen.pieces += data.count(b'"reasoning":"')
        if self._look:
            at = data.rfind(b'"reasoning":"')
            digit = LAST_DIGIT.get(data[data.find(b'"', at + 13) - 1]) if at >= 0 else None
            if digit is not None:
                seen.transit.append(now - max(rank.sent_at[digit] for rank in self._ranks))

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.first, self.done):
            if not future.done():
                future.set_result(None)
        self._seen.broken += exc is not None


async def grpc_client(
    channel: grpc.aio.Channel, request: north.ChatRequest, seen: Seen, ranks: Sequence[Rank], first: asyncio.Event
) -> None:
    """One Chat call; events stay bytes, of which the last is the last digit."""
    started = time.monotonic()
    call = channel.unary_stream(CHAT, request_serializer=north.ChatRequest.SerializeToString)(request)
    events = 0
    async for event in call:
        events += 1
        if events == 2:
            seen.first_token.append(time.monotonic() - started)
            first.set()
        elif events > 2 and (digit := LAST_DIGIT.get(event[-1])) is not None:
            seen.pieces += 1
            seen.transit.append(time.monotonic() - max(rank.sent_at[digit] for rank in ranks))
    first.set()


def body(max_tokens: int = MAX_TOKENS) -> bytes:
    request = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": max_tokens}
    return json.dumps({**request, "loop_guard": False}).encode()
