"""A rank without a model that answers each request whole after a while, as wide as its seats. It is attached to several
routers as a worker is: it passes on what one says to the others, and tells each how much the others have here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

import grpc
from r1_cluster.plan import Plan
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import fleet_pb2_grpc as rpc
from r1_serve.protos.version import PROTOCOL_VERSION

logger = logging.getLogger(__name__)

BEAT_S = 0.05
RETRY_S = 0.2
ANSWER_TOKENS = 40


class _Stream:
    """To one router. gRPC takes one write at a time."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self.call = call
        self.router_id = ""
        self.running = 0
        self._writing = asyncio.Lock()

    async def write(self, message: pb.WorkerMessage) -> None:
        async with self._writing:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the router has ended
                await self.call.write(message)


class AnsweringRank:
    """``service_s``: from a request's seat to its answer."""

    def __init__(self, plan: Plan, name: str, *, seats: int, service_s: float) -> None:
        self._service_s = service_s
        self._seats = asyncio.Semaphore(seats)
        self._open: list[_Stream] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Condition()
        self._digests = 0
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

    async def attached(self, routers: int) -> None:
        """Wait until so many have welcomed it."""
        async with self._news:
            await self._news.wait_for(lambda: self._routers() >= routers)

    async def passed_on(self, digests: int) -> None:
        """Wait until so many reports of routers have come by."""
        async with self._news:
            await self._news.wait_for(lambda: self._digests >= digests)

    def _routers(self) -> int:
        return sum(1 for stream in self._open if stream.router_id)

    async def run(self, addresses: Sequence[str]) -> None:
        """Attach to all and serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            for address in addresses:
                group.create_task(self._attach(address))

    async def _attach(self, address: str) -> None:
        """For ever, until it is sent elsewhere: a router that is just starting may not answer yet."""
        ports: Sequence[int] = ()
        while not ports:
            async with grpc.aio.insecure_channel(address) as channel:
                stream = _Stream(rpc.FleetStub(channel).Attach())
                self._open.append(stream)
                try:
                    await stream.write(pb.WorkerMessage(hello=self._hello))
                    ports = await self._converse(stream)
                except grpc.aio.AioRpcError as e:
                    logger.info("router %s: %s %s", address, e.code().name, e.details())
                finally:
                    self._open.remove(stream)
            await asyncio.sleep(RETRY_S)
        host = address.rpartition(":")[0]
        await asyncio.gather(*(self._attach(f"{host}:{port}") for port in ports))

    async def _converse(self, stream: _Stream) -> Sequence[int]:
        """Until the router ends the stream. Returns the ports of those that it sends us to."""
        while (message := await stream.call.read()) is not grpc.aio.EOF:
            match message.WhichOneof("message"):
                case "welcome":
                    if message.welcome.ports:
                        return list(message.welcome.ports)
                    stream.router_id = message.welcome.router_id
                    await self._tell(stream)
                    await self._told()
                case "submit":
                    task = asyncio.create_task(self._answer(stream, message.submit.request_id))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case "digest":
                    for other in self._open:
                        if other.router_id not in ("", message.digest.router_id):
                            await other.write(pb.WorkerMessage(digest=message.digest))
                    self._digests += 1
                    await self._told()
        return []

    async def _told(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _answer(self, stream: _Stream, request_id: int) -> None:
        stream.running += 1
        async with self._seats:
            await asyncio.sleep(self._service_s)
        stream.running -= 1
        # Ids of no meaning: what counts here is their number.
        done = pb.Delta(request_id=request_id, token_ids=[71] * ANSWER_TOKENS, finish=pb.FINISH_STOP)
        await self._tell(stream, done)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for stream in list(self._open):
                if stream.router_id:
                    await self._tell(stream)

    async def _tell(self, stream: _Stream, *deltas: pb.Delta) -> None:
        running = sum(each.running for each in self._open)
        frame = pb.Frame(
            deltas=deltas, load=pb.Load(running=running), others=running - stream.running, routers=self._routers()
        )
        await stream.write(pb.WorkerMessage(frame=frame))
