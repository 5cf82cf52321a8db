"""The streams to the routers: a rank calls each router address, says who it is and takes work until one side leaves.

Names are resolved again and again: a headless Service gains and loses addresses as routers scale.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import grpc

from r1_serve import fleet_token
from r1_serve.errors import StartupError
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import fleet_pb2_grpc as rpc
from r1_serve.workers.autoscaling import Demands
from r1_serve.workers.generations import Generations

logger = logging.getLogger(__name__)

RETRY_S = 1.0
MAX_RETRY_S = 30.0  # between tries where the router does not know our fleet token: it will be a while

# A dead router or a cut cable is noticed within seconds. The router permits pings this often.
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.ping_timeout_ms", 5000),  # the keepalive's own timeout only holds where this one is not longer
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.enable_retries", 0),
)

Resolver = Callable[[str], Awaitable[set[str]]]


async def resolve(target: str) -> set[str]:
    """``host:port`` as the set of ``address:port`` behind it; empty where the name is unknown now."""
    host, _, port = target.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return set()
    addresses = set()
    for family, *_, address in found:
        ip = str(address[0])
        addresses.add(f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}")
    return addresses


def targets(routers: str) -> tuple[str, ...]:
    """Split ``host:port,host:port``. Raises ValueError naming the part that is neither."""
    parts = tuple(part.strip() for part in routers.split(",") if part.strip())
    for part in parts:
        host, _, port = part.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"router {part!r} is not host:port")
    if not parts:
        raise ValueError("no router given: host:port, comma separated")
    return parts


class _Stream:
    """One attached stream's outgoing messages: the step hook puts frames in, gRPC takes them out."""

    def __init__(self, others: Callable[[_Stream], tuple[int, int]]) -> None:
        """``others``: how many requests other routers have on the rank, and how many routers are attached."""
        self._out: asyncio.Queue[pb.Frame | pb.Digest | None] = asyncio.Queue()
        self._sequence = 0
        self._others = others
        self.router_id = ""  # once it is welcome

    def send(self, frame: pb.Frame) -> None:
        self._out.put_nowait(frame)

    def pass_on(self, digest: pb.Digest) -> None:
        self._out.put_nowait(digest)

    def finish(self) -> None:
        self._out.put_nowait(None)

    async def messages(self, hello: pb.Hello) -> AsyncIterator[pb.WorkerMessage]:
        yield pb.WorkerMessage(hello=hello)
        while (out := await self._out.get()) is not None:
            if isinstance(out, pb.Digest):
                yield pb.WorkerMessage(digest=out)
                continue
            self._sequence += 1
            out.sequence = self._sequence
            out.others, out.routers = self._others(self)
            yield pb.WorkerMessage(frame=out)


class Attachments:
    """Keeps one stream to every router address until :meth:`leave`."""

    def __init__(
        self,
        hello: pb.Hello,
        generations: Generations,
        routers: Iterable[str],
        *,
        resolve_interval_s: float,
        resolver: Resolver = resolve,
        demands: Demands | None = None,
        token: fleet_token.Source = lambda: None,
    ) -> None:
        self._hello = hello
        self._generations = generations
        self._routers = tuple(routers)
        self._interval = resolve_interval_s
        self._resolver = resolver
        self._demands = demands or Demands()
        self._token = token
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._open: set[_Stream] = set()
        self._behind: dict[str, set[str]] = {}  # addresses of the routers that an address stands for
        self._digests: dict[str, pb.Digest] = {}  # the last one of each router

    async def run(self) -> None:
        """Attach to what the names resolve to, for ever. A router gone from them keeps its stream until it ends."""
        while True:
            found: set[str] = set()
            for router in self._routers:
                found |= await self._resolver(router)
            for address in list(found):
                found |= self._behind.get(address, set())
            for address in found:
                task = self._streams.get(address)
                if task is None or task.done():
                    self._streams[address] = asyncio.create_task(self._attach(address))
            await asyncio.sleep(self._interval if found else min(self._interval, RETRY_S))

    async def leave(self) -> None:
        """Close every stream after its last frame."""
        for stream in self._open:
            stream.finish()
        tasks = list(self._streams.values())
        if tasks:
            _, slow = await asyncio.wait(tasks, timeout=2.0)
            for task in slow:
                task.cancel()

    async def _attach(self, address: str) -> None:
        """One stream's life, then again after a pause while the router answers at all."""
        pause, said = RETRY_S, ""
        while True:
            stream = _Stream(self._others)
            try:
                async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
                    sent = fleet_token.metadata(self._token())
                    call = rpc.FleetStub(channel).Attach(stream.messages(self._hello), metadata=sent)
                    await self._converse(call, stream, address)
                return
            except StartupError as e:  # the token's file, which may come back
                fault, slower = e.message, True
            except grpc.aio.AioRpcError as e:
                fault, slower = f"{e.code().name} {e.details()}", e.code() is grpc.StatusCode.UNAUTHENTICATED
                if e.code() is grpc.StatusCode.UNAVAILABLE:
                    logger.warning("router %s: %s", address, fault)
                    return  # the resolver loop calls again while the name still leads here
            if fault != said or not slower:
                logger.warning("router %s: %s", address, fault)
            await asyncio.sleep(pause)
            pause, said = min(2 * pause, MAX_RETRY_S) if slower else RETRY_S, fault

    async def _converse(self, call: grpc.aio.StreamStreamCall, stream: _Stream, address: str) -> None:
        self._open.add(stream)
        self._generations.open(stream)
        try:
            async for message in call:
                match message.WhichOneof("message"):
                    case "submit":
                        await self._generations.submit(stream, message.submit)
                    case "abort":
                        await self._generations.abort(stream, message.abort.request_id)
                    case "digest":
                        self._pass_on(message.digest)
                    case "demand":
                        self._demands.told(address, message.demand)
                    case "welcome":
                        self._welcome(stream, message.welcome, address)
        finally:
            self._open.discard(stream)
            self._digests.pop(stream.router_id, None)
            await self._generations.close(stream)

    def _welcome(self, stream: _Stream, welcome: pb.Welcome, address: str) -> None:
        if welcome.ports:
            host, _, _ = address.rpartition(":")
            self._behind[address] = {f"{host}:{port}" for port in welcome.ports}
            return
        self._behind.pop(address, None)
        stream.router_id = welcome.router_id
        for digest in self._digests.values():
            stream.pass_on(digest)
        logger.info("attached to router %s at %s", welcome.router_id, address)

    def _pass_on(self, digest: pb.Digest) -> None:
        """Routers know of each other by us: what one says to the others goes to all that are attached."""
        self._digests[digest.router_id] = digest
        for stream in self._open:
            if stream.router_id not in ("", digest.router_id):
                stream.pass_on(digest)

    def _others(self, stream: _Stream) -> tuple[int, int]:
        return self._generations.of_others(stream), sum(1 for other in self._open if other.router_id)
