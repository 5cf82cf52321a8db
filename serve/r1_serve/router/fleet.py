"""South side: worker ranks attach here. One stream a rank: commands out, one frame an engine step in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc
from r1_cluster.plan import Plan

from r1_serve.errors import AttachRefused, BadFrame, R1Error
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import fleet_pb2_grpc as rpc
from r1_serve.protos.version import PROTOCOL_VERSION
from r1_serve.router.door import Door
from r1_serve.router.metrics import Metrics
from r1_serve.router.models import Catalog
from r1_serve.router.ranks import Rank, Ranks

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
MAX_ID_LENGTH = 200


class Fleet(rpc.FleetServicer):
    """``heard`` takes what other routers have to say."""

    def __init__(
        self,
        catalog: Catalog,
        ranks: Ranks,
        metrics: Metrics,
        router_id: str,
        heard: Callable[[pb.Digest], None],
        door: Door,
    ) -> None:
        self._catalog = catalog
        self._ranks = ranks
        self._metrics = metrics
        self._router_id = router_id
        self._heard = heard
        self._door = door

    async def Attach(self, messages: AsyncIterator[pb.WorkerMessage], context: grpc.aio.ServicerContext) -> None:
        """A rank's stream, from its Hello until either side leaves."""
        try:
            self._door.check(context)
            rank = await self._welcome(messages, context)
        except R1Error as e:
            await self._door.refuse(context, e)
            return
        hello = rank.hello
        logger.info(
            "attached: %s, rank %d of %d in gang %s", hello.worker_id, hello.rank, hello.gang_size, hello.gang_id
        )
        commands = asyncio.create_task(_send_commands(rank, context))
        why = "its stream broke"
        try:
            await self._read_frames(rank, messages)
            why = "it left"
        except R1Error as e:
            why = e.message
            logger.error("worker %s breaks the protocol: %s", hello.worker_id, why)
            await context.abort(e.grpc_status, why, (("r1-reason", e.reason),))
        finally:
            self._ranks.detach(rank, why)
            how = "left" if rank.draining else "lost"
            self._metrics.detached.labels(hello.model, rank.plan.name, how).inc()
            commands.cancel()
            await asyncio.gather(commands, return_exceptions=True)  # it may have met the broken stream first
            logger.info("detached: %s: %s", hello.worker_id, why)

    async def _welcome(self, messages: AsyncIterator[pb.WorkerMessage], context: grpc.aio.ServicerContext) -> Rank:
        """Raises AttachRefused, AlreadyAttached."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(aiter(messages), None)
        except TimeoutError:
            first = None
        if first is None or first.WhichOneof("message") != "hello":
            raise BadFrame("a worker's first message must be hello")
        plan = check_hello(first.hello, self._catalog)
        rank = self._ranks.attach(first.hello, plan)
        # Written before any command: the outbox is only read after this.
        welcome = pb.Welcome(protocol_version=PROTOCOL_VERSION, router_id=self._router_id)
        try:
            await context.write(pb.RouterMessage(welcome=welcome))
        except BaseException:
            self._ranks.detach(rank, "its stream broke")
            raise
        return rank

    async def _read_frames(self, rank: Rank, messages: AsyncIterator[pb.WorkerMessage]) -> None:
        sequence = 0
        async for message in messages:
            if message.HasField("digest"):
                self._heard(message.digest)
                continue
            if not message.HasField("frame"):
                raise BadFrame("after hello only frames may come, and hello once")
            frame = message.frame
            if frame.sequence:
                sequence += 1
                if frame.sequence != sequence:
                    raise BadFrame(f"frame {frame.sequence} came where {sequence} was due: tokens are lost or repeated")
            if not 0.0 <= frame.load.kv_usage <= 1.001:
                raise BadFrame(f"a KV usage of {frame.load.kv_usage} is no share")
            if len(frame.steady_request_ids) != len(frame.steady_token_ids):
                raise BadFrame("a frame's request ids and token ids differ in number")
            strays = self._ranks.on_frame(rank, frame)
            if strays:
                self._metrics.stray_deltas.inc(strays)


async def _send_commands(rank: Rank, context: grpc.aio.ServicerContext) -> None:
    while True:
        await context.write(await rank.outbox.get())


def check_hello(hello: pb.Hello, catalog: Catalog) -> Plan:
    """The plan a worker runs by. Raises AttachRefused saying what does not fit this router."""
    if hello.protocol_version != PROTOCOL_VERSION:
        raise AttachRefused(
            f"worker speaks fleet protocol {hello.protocol_version}, this router {PROTOCOL_VERSION}: "
            "run the same r1-serve version on both"
        )
    if not hello.worker_id or max(len(hello.worker_id), len(hello.gang_id)) > MAX_ID_LENGTH:
        raise AttachRefused(f"worker_id must be given, and it and gang_id have at most {MAX_ID_LENGTH} characters")
    plan = catalog.plans.get(hello.plan_hash)
    if plan is None:
        known = ", ".join(f"{plan.name} ({digest})" for digest, plan in catalog.plans.items())
        raise AttachRefused(
            f"worker runs plan {hello.plan_name[:63]} ({hello.plan_hash[:12]}), this router knows {known}: "
            "start both from the same plan"
        )
    pool = next((pool for pool in plan.pools if pool.name == hello.pool), None)
    if hello.model != plan.model.name or pool is None:
        raise AttachRefused(f"plan {plan.name} has no model {hello.model[:63]!r} in a pool {hello.pool[:63]!r}")
    size = pool.layout.data_parallel_size
    if hello.gang_size != size or hello.rank >= size:
        raise AttachRefused(
            f"rank {hello.rank} of {hello.gang_size} does not fit pool {pool.name}, whose gangs have {size}"
        )
    seats, length = plan.engine.max_num_seqs, plan.engine.max_model_len
    if hello.capacity.max_num_seqs > seats or hello.capacity.max_model_len != length:
        raise AttachRefused(
            f"worker claims {hello.capacity.max_num_seqs} seats and a context of {hello.capacity.max_model_len}, which "
            f"plan {plan.name} does not give it ({seats}, {length}): start it by that plan"
        )
    return plan
